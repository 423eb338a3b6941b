"""Judgements between responses: records, ratings, rankings, raters and what they agree on, and length bias."""
