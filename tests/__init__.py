PATIENCE_S = 300
"""After so long a test gives up, whatever it waits for: other work may need all cores."""
