"""What models predict, how sure that is, which is better, and which is champion."""
