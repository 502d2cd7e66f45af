"""The pages of the screen: what the store holds, in a browser."""
