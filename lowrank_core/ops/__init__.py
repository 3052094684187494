"""What a step does to arrays: operations on the array API, and each library's faster ones."""
