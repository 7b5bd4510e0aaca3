"""What is known of a program from its operations: degrees, jumps, moments, and which elements of a plate meet."""
