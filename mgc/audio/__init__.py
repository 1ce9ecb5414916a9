"""From an MP3's bytes to a log-Mel spectrogram."""
