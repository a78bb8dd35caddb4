"""The commands share these: options, completion, what they print, and how several processes work as one."""
