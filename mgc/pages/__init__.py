"""What all HTML pages and plots share."""
