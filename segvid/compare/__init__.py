"""`segvid compare`: train and evaluate several heads alike, measure what they cost, and report it."""
