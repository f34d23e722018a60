"""The server: requests of any thread, computed one after the other beside one trunk."""
import collections
import contextlib
import itertools
import threading
from concurrent.futures import Future

import torch

from ..highway.shared import same_pass, together
from . import images as given_images
from .task import open_task
from .trunk import Pool


class Removed(ValueError):
    """A task was removed before its request was answered, or the server was closed."""


class Request:
    """Images for some tasks; `future` gets {task: [sample of each image], or an exception}."""

    def __init__(self, images, tasks):
        self.images, self.tasks, self.future = images, tasks, Future()
        self.found = {task: [] for task in tasks}
        self.waiting = sum(1 for _ in parts_of(self))


def parts_of(request):
    """What of a request is computed at once: all tasks that leave the weights alone, and each of the others."""
    plain = [task for task in request.tasks if task.written is None]
    return [(request, tasks) for tasks in ([plain] if plain else []) + [
        [task] for task in request.tasks if task.written is not None]]


class Server:
    """One frozen trunk, and tasks beside it.

    Args:
        base (str): file or URL of the trunk's weights. Default: what the first task's delta records.
        config (Config or str): of tasks that do not say theirs.
        device (str): where the trunk is.
        autocast (str): 'bf16' or 'fp16': images go through by torch's autocast.
    """

    def __init__(self, base=None, config=None, device='cpu', autocast=None):
        halves = dict(bf16=torch.bfloat16, fp16=torch.float16)
        if autocast not in (None, *halves):
            raise ValueError(f'autocast={autocast!r}: give {", ".join(map(repr, halves))}, or None')
        self.base, self.config, self.device = base, config, torch.device(device)
        self.autocast, self.pool = halves.get(autocast), Pool()
        self.tasks, self.changing = {}, threading.RLock()               # who adds and removes
        self.computing = threading.RLock()                              # who computes, for one image
        self.writing = threading.RLock()                                # who needs the trunk's weights as they are
        self.queue, self.news, self.closed = collections.deque(), threading.Condition(), False
        self.active, self.numbers = None, itertools.count()
        self.worker = threading.Thread(target=self.work, name='e3va.serve', daemon=True)
        self.worker.start()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    # ---- Tasks -------------------------------------------------------------------------------------------------------

    def add(self, name, source, config=None, base=None):
        """Serve a delta or a checkpoint under a name; ValueError where it cannot be, and nothing has changed then.

        Args:
            name (str): of the task.
            source (str): a delta, its folder, an `e3va://` address, or a `.pth` checkpoint of a tuned model.
            config (Config or str): of the task. Default: what the delta says, else the server's.
            base (str): file or URL of the trunk's weights. Default: the server's, else what the delta records; none is
                read where the trunk is in memory.
        """
        with self.changing:
            if name in self.tasks:
                raise ValueError(f'there is a task {name!r} already: replace it, or give another name')
            self.tasks = {**self.tasks, name: self.open(name, source, config, base)}

    def replace(self, name, source, config=None, base=None):
        """Serve something else under a name; requests that are waiting are answered by what was there."""
        with self.changing:
            self.known(name)
            self.tasks = {**self.tasks, name: self.open(name, source, config, base)}

    def remove(self, name):
        """Serve a task no more. Its requests that are waiting get `Removed`."""
        with self.changing:
            task = self.known(name)
            task.removed = True
            self.tasks = {other: task for other, task in self.tasks.items() if other != name}
            if self.active is task:
                with self.computing:
                    self.turn(None)

    def known(self, name):
        if name not in self.tasks:
            raise ValueError(f'there is no task {name!r}; there are: {", ".join(map(str, self.tasks)) or "none"}')
        return self.tasks[name]

    def open(self, name, source, config, base):
        return open_task(name, source, self.pool, config or (None if self.says(source) else self.config),
                         base or self.base, self.device, self.resting)

    def says(self, source):
        """Whether a file says which config it belongs to."""
        from .task import says_config
        return self.config is None or says_config(source)

    @contextlib.contextmanager
    def resting(self):
        """The trunk's weights are its own in here, and stay so; what leaves them alone is computed beside."""
        with self.writing:
            with self.computing:
                self.turn(None)
            yield self.assign

    def assign(self, task):
        """Note beside which others the highway of a new task can go."""
        if task.method != 'E3VA':
            return
        leaders = {other.highway: other for other in self.tasks.values() if other.highway is not None}
        for number, leader in leaders.items():
            if same_pass(leader.trunk, task.trunk):
                task.highway = number
                return
        task.highway = next(self.numbers)

    @property
    def memory(self):
        """{'trunk': bytes, 'tasks': {name: bytes}}."""
        return dict(trunk=self.pool.nbytes, tasks={name: task.nbytes(self.pool) for name, task in self.tasks.items()})

    # ---- Requests ----------------------------------------------------------------------------------------------------

    def __call__(self, images, tasks=None):
        """Data samples of the libraries for images.

        Args:
            images: a path or an array (height, width, 3), BGR, uint8; or a list of them.
            tasks (str or sequence of str): names. Default: all.

        Returns:
            dict: {task: list of data samples}; of a task that fails the exception stands in the list's place. For one
            name, not in a list, what would be its entry, and its exception is raised. For one image, not in a list, its
            sample in the place of a list.

        Raises:
            ValueError: no such task, or an image that is none (see `images.check`): before anything is computed.
        """
        return self.submit(images, tasks).result()

    def submit(self, images, tasks=None):
        """The same for later: a `concurrent.futures.Future` of it."""
        alone = not isinstance(images, (list, tuple))
        checked = [given_images.check(image, i) for i, image in enumerate([images] if alone else images)]
        now = self.tasks
        names = [tasks] if isinstance(tasks, str) else list(now) if tasks is None else list(tasks)
        if not names:
            raise ValueError('the server has no tasks: add one')
        request = Request(checked, [self.known(name) for name in dict.fromkeys(names)])
        answer = Future()

        def finish(done):
            found = {task.name: value[0] if alone and isinstance(value, list) else value
                     for task, value in done.result().items()}
            if not isinstance(tasks, str):
                answer.set_result(found)
            elif isinstance(found[tasks], Exception):
                answer.set_exception(found[tasks])
            else:
                answer.set_result(found[tasks])

        request.future.add_done_callback(finish)
        with self.news:
            if self.closed:
                raise Removed('the server is closed')
            self.queue.append(request)
            self.news.notify()
        return answer

    def close(self):
        """Answer no more; requests that are waiting get `Removed`, the trunk's weights are its own again."""
        with self.news:
            self.closed = True
            self.news.notify()
        if threading.current_thread() is not self.worker:
            self.worker.join()
        with self.computing:
            self.turn(None)

    # ---- The one thread that computes --------------------------------------------------------------------------------

    def work(self):
        while True:
            with self.news:
                while not self.queue and not self.closed:
                    self.news.wait()
                waiting = list(self.queue)
                self.queue.clear()
                if self.closed and not waiting:
                    return
            parts = [part for request in waiting for part in parts_of(request)]
            # grouped: a task's entries go into the weights once for all that wait, those that are in them first
            parts.sort(key=lambda part: (part[1][0].written is not None and part[1][0] is not self.active,
                                         id(part[1][0].written) if part[1][0].written else 0))
            for request, tasks in parts:
                failed = attempt(self.compute, request, tasks)
                request.found.update((task, failed) for task in tasks if failed is not None)
                request.waiting -= 1
                if not request.waiting:
                    request.future.set_result(request.found)
            del waiting, parts                                          # nothing is held while there is nothing to do

    def compute(self, request, tasks):
        """Answer a part of a request, image by image."""
        for image in request.images:
            left = [task for task in tasks if isinstance(request.found[task], list)]
            for task in left:
                if task.removed or self.closed:
                    request.found[task] = Removed(f'the task {task.name!r} was removed while its request was waiting'
                                                  if task.removed else 'the server was closed')
            left = [task for task in left if isinstance(request.found[task], list)]
            if not left:
                return
            alone = self.writing if left[0].written else contextlib.nullcontext()
            with alone, self.computing, torch.no_grad(), torch.autocast(
                    self.device.type, self.autocast, enabled=self.autocast is not None):
                self.turn(left[0] if left[0].written else None)
                for task, sample in zip(left, self.samples(left, image)):
                    if isinstance(sample, Exception):
                        request.found[task] = sample
                    else:
                        request.found[task].append(sample)

    def turn(self, task):
        """Have the entries of a task in the trunk's weights, or nobody's."""
        if self.active is not task:
            if self.active is not None:
                self.active.written.exchange()
            self.active = None
            if task is not None:
                task.written.exchange()
            self.active = task

    def samples(self, tasks, image):
        """The data sample of each task for an image, or its exception."""
        data = [attempt(prepare, task, image) for task in tasks]
        groups = {}
        for task, batch in zip(tasks, data):
            if task.highway is not None and not isinstance(batch, Exception):
                same = next((key for key in groups if key[0] == task.highway
                             and torch.equal(groups[key][0][1]['inputs'], batch['inputs'])), (task.highway, id(task)))
                groups.setdefault(same, []).append((task, batch))
        for group in groups.values():
            if len(group) > 1:
                outs = attempt(together, [task.trunk for task, _ in group], group[0][1]['inputs'])
                for (task, batch), out in zip(group, outs if isinstance(outs, list) else ()):
                    task.trunk.given = batch['inputs'], out             # an error alone will be each task's own
        try:
            return [batch if isinstance(batch, Exception) else attempt(predict, task, batch)
                    for task, batch in zip(tasks, data)]
        finally:
            for task in tasks:
                vars(task.trunk).pop('given', None)


def prepare(task, image):
    """What a task's model takes of an image, a batch of one on its device."""
    return task.model.data_preprocessor(task.transforms(image), False)


def predict(task, batch):
    return task.model(**batch, mode='predict')[0]


def attempt(function, *args):
    """What a function gives, or the exception that it raises."""
    try:
        return function(*args)
    except Exception as error:                                          # of one task: the others go on
        return error
