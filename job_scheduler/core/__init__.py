"""The scheduler itself: tables and statements, timer and dispatcher, runs and recovery."""
