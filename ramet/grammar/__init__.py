"""Constraints: regex, JSON schema, EBNF, structural tag → compiled grammar → a matcher per request. The only door of `llguidance`."""
