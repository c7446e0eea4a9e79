//! A thread for calls that another process can hold up, and that nothing can interrupt.

use crate::sys::{SysError, thread};
use parking_lot::{Condvar, Mutex};
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

type Done = Result<(), SysError>;

/// Makes one call at a time. Dropping it ends the thread once its last call has returned.
pub(super) struct Worker(Arc<Desk>);

#[derive(Default)]
struct Desk {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    task: Task,
    ended: bool,
}

#[derive(Default)]
enum Task {
    #[default]
    None,
    Asked {
        call: Box<dyn FnOnce() -> Done + Send>,
        undo: Box<dyn FnOnce() + Send>,
    },
    UnderWay,
    /// The caller has left: what the call did is to be undone.
    Abandoned,
    Done(Done),
}

impl Worker {
    pub(super) fn start() -> Result<Self, SysError> {
        let desk = Arc::<Desk>::default();
        let its = Arc::clone(&desk);
        thread::spawn("mmio-window", move || its.work())?;
        Ok(Self(desk))
    }

    /// Has `call` made, and returns its result. If it takes longer than until `deadline` (`None`: waits for ever), and
    /// `later` gives no later deadline then, the caller leaves: `abandon` is called at once, the worker calls `undo` when
    /// `call` has returned, and until then it takes no other call. Returns `None` then, and also if an earlier call is
    /// still under way at the deadline.
    pub(super) fn run(
        &self,
        call: impl FnOnce() -> Done + Send + 'static,
        abandon: impl FnOnce(),
        undo: impl FnOnce() + Send + 'static,
        deadline: Option<Instant>,
        mut later: impl FnMut() -> Option<Instant>,
    ) -> Option<Done> {
        let Desk { state, changed } = &*self.0;
        let mut state = state.lock();
        // False at the deadline.
        let wait = |state: &mut parking_lot::MutexGuard<'_, State>, deadline| match deadline {
            Some(deadline) => !changed.wait_until(state, deadline).timed_out(),
            None => {
                changed.wait(state);
                true
            }
        };
        while !matches!(state.task, Task::None) {
            if !wait(&mut state, deadline) && !matches!(state.task, Task::None) {
                return None;
            }
        }
        state.task = Task::Asked { call: Box::new(call), undo: Box::new(undo) };
        changed.notify_all();
        let mut until = deadline;
        while !matches!(state.task, Task::Done(_)) {
            if !wait(&mut state, until) && matches!(state.task, Task::UnderWay | Task::Asked { .. }) {
                let Some(next) = later() else { break };
                until = Some(next);
            }
        }
        match std::mem::take(&mut state.task) {
            Task::Done(done) => {
                changed.notify_all();
                Some(done)
            }
            // The thread has not run yet, and calls nothing. Another caller may be waiting for that.
            Task::Asked { .. } | Task::None => {
                changed.notify_all();
                None
            }
            Task::UnderWay | Task::Abandoned => {
                state.task = Task::Abandoned;
                abandon();
                None
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.0.state.lock().ended = true;
        self.0.changed.notify_all();
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").finish_non_exhaustive()
    }
}

impl Desk {
    fn work(&self) {
        let mut state = self.state.lock();
        while !state.ended {
            match std::mem::take(&mut state.task) {
                Task::Asked { call, undo } => {
                    state.task = Task::UnderWay;
                    drop(state);
                    let done = call();
                    state = self.state.lock();
                    match state.task {
                        Task::Abandoned => {
                            drop(state);
                            undo();
                            state = self.state.lock();
                            state.task = Task::None;
                        }
                        _ => state.task = Task::Done(done),
                    }
                    self.changed.notify_all();
                }
                other => {
                    state.task = other;
                    self.changed.wait(&mut state);
                }
            }
        }
    }
}

#[cfg(all(test, not(revocable_model)))]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::sync::mpsc;
    use std::time::Duration;

    /// A call of three steps, and whether it was left under way. Each step is made when the caller has waited for a while and
    /// asks whether the call gets on.
    fn slow_call(gets_on: bool) -> (Option<Done>, bool) {
        let ((begin, begun), (step, steps)) = (mpsc::channel(), mpsc::channel::<()>());
        let call = move || {
            let _ = begin.send(());
            for _ in 0..3 {
                let _ = steps.recv();
            }
            Ok(())
        };
        let deadline = || Instant::now() + Duration::from_millis(20);
        let mut is_under_way = false;
        let later = || {
            is_under_way |= begun.try_recv().is_ok();
            if is_under_way && gets_on {
                // Nobody listens once it has ended.
                let _ = step.send(());
            }
            (gets_on || !is_under_way).then(deadline)
        };
        let left = Cell::new(false);
        let worker = Worker::start().expect("a thread");
        let done = worker.run(call, || left.set(true), || (), Some(deadline()), later);
        (done, left.get())
    }

    #[test]
    fn a_call_that_gets_on_is_waited_for_however_long_it_takes() {
        assert_eq!(slow_call(true), (Some(Ok(())), false));
    }

    #[test]
    fn a_call_that_does_not_get_on_is_left() {
        assert_eq!(slow_call(false), (None, true));
    }

    #[test]
    fn a_call_that_is_given_up_before_it_begins_makes_room_for_the_next() {
        let desk = Arc::<Desk>::default();
        let worker = Worker(Arc::clone(&desk));
        let soon = |seconds| Some(Instant::now() + Duration::from_secs(seconds));
        std::thread::scope(|scope| {
            // There is no thread yet, as if it had not been scheduled.
            let first = scope.spawn(|| worker.run(|| panic!("it was given up"), || (), || (), soon(1), || None));
            while matches!(desk.state.lock().task, Task::None) {
                std::thread::yield_now();
            }
            let second = scope.spawn(|| worker.run(|| Ok(()), || (), || (), soon(20), || None));
            assert_eq!(first.join().expect("no panic"), None);
            scope.spawn(|| desk.work());
            let since = Instant::now();
            let second = second.join().expect("no panic");
            desk.state.lock().ended = true;
            desk.changed.notify_all();
            assert_eq!(second, Some(Ok(())));
            assert!(since.elapsed() < Duration::from_secs(10), "it waited for nothing");
        });
    }
}
