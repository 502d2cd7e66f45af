"""Ways to the commands beside the shell: servers for programs and browsers, and functions of Python."""
