"""The interpreter of the IR, and the backends' protocol that it runs on."""
