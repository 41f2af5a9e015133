"""Who owns each page of the KV pool: free, cached in the radix tree, or leased to a request. `Cache` in `lease.py` is the contract."""
