"""What a derived bundle lost: pictures compared, limits, reports."""
