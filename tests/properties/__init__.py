"""What holds of every store, whatever is in it: Hypothesis draws what nobody thought of."""
