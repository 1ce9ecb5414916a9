"""Networks that others have trained, by name: where their weights come from, and what they make of a spectrogram."""
