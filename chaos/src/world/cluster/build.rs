//! Objects for scenarios and tests: valid ones to start from.
