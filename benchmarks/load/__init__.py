"""How the memory grows: with the passages, with calls beside each other, with a call's length."""
