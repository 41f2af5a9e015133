"""Constraints: regex, JSON schema, grammar or structural tag → compiled grammar → one matcher per request. The only door of `llguidance`."""
