"""The intermediate representation: types, ops, modules, verifier, textual form, whitelisted builtins."""
