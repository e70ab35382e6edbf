"""Reading and selecting rows of any table: a study's or one from elsewhere."""
