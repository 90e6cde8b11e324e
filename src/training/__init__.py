"""Fine-tuning: the loop, and the merge of an adapter into its base."""
