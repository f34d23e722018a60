"""One progress bar a run: mmengine's hook says when, rich draws.

Where the output is no terminal: a line for the first step and one for each epoch.
"""
from mmengine.hooks import Hook
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class ProgressHook(Hook):
    """Show `title`, the epoch, the loss and the time left of a training on `console`; the caller stops the `bar`."""

    priority = 'VERY_LOW'

    def __init__(self, console, title):
        self.console, self.title = console, title
        self.bar = Progress(
            TextColumn('{task.description}'), BarColumn(), TextColumn('{task.completed}/{task.total} steps'),
            TextColumn('loss {task.fields[loss]}'), TimeElapsedColumn(), TimeRemainingColumn(),
            console=console, disable=not console.is_terminal,
            redirect_stdout=False, redirect_stderr=False)                # they go to the log, not above the bar

    def heading(self, runner):
        """The title, with the stage of a method that trains in stages."""
        stage = runner.message_hub.log_scalars.get('train/stage')
        return f'{self.title}, stage {stage.current()}' if stage else self.title

    def before_train(self, runner):
        self.bar.start()
        self.task = self.bar.add_task(self.title, total=runner.max_iters, completed=runner.iter, loss='-')

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.bar.update(self.task, completed=runner.iter + 1, loss=f'{outputs["loss"].item():.2f}',
                        description=self.heading(runner))
        if batch_idx == runner.epoch == 0 and not self.console.is_terminal:
            self.console.print(f'{self.heading(runner)}: first step, loss {outputs["loss"].item():.2f}')

    def after_train_epoch(self, runner):
        if not self.console.is_terminal:
            loss = runner.message_hub.get_scalar('train/loss').mean(len(runner.train_dataloader))
            self.console.print(f'{self.heading(runner)}: epoch {runner.epoch + 1} of {runner.max_epochs}, '
                               f'loss {loss:.2f}')
