"""Models as a user would write them: nothing in here knows chainrule."""
