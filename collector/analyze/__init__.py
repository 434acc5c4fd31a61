"""Analysis of recordings with pandas: loading, summaries, and input for the model."""
