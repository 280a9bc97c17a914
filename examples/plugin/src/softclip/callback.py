"""A callback: `chainrule.watch` for a training loop that calls its callbacks at these three moments."""

import chainrule


class LoopCallback:
    """Watches a training; takes the options of `chainrule.watch`."""

    def __init__(self, **options):
        self.options = options

    def on_train_begin(self, model, optimizer):
        """Begin to watch."""
        self.watch = chainrule.watch(model, optimizer, **self.options)

    def on_step_end(self):
        """Store a step that a GradScaler skipped."""
        self.watch.step()

    def on_train_end(self):
        """End the watch, and write the run to the end."""
        self.watch.close()
