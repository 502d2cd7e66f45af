"""Commands here create policies, train them and manage their versions."""
