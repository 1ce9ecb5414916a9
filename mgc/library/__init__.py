"""Music that has no label: any file's genre, a whole library's, and what is made of it."""
