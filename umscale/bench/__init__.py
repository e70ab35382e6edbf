"""What ``umscale bench`` measures: every variant in one process, interleaved, medians beside a named reference."""
