"""What an app embeds: bundles, the tokenizer, a student at work, and the commands of a device."""
