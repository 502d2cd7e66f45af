"""Other ways to the commands than the shell: servers for programs and browsers, and Python functions."""
