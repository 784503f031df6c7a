//! Orders and their steps, on values.
