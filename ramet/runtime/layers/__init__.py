"""The building blocks of a decoder, and the slots through which a checkpoint fills them."""
