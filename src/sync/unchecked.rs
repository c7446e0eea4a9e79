//! The part of loom's interface that the models use, over std: the same models for Miri, which cannot run loom.
//!
//! Miri does not go through every interleaving. It sees what loom does not look at: whether the code that is checked has
//! undefined behaviour, such as a pointer that is used after its box, or a reference beside another thread's write.

#![expect(unsafe_code, reason = "a cell that threads share")]
// UNSAFETY: the models' memory, and closures that only their own thread runs.

pub(crate) use std::thread_local;

pub(crate) mod hint {
    pub(crate) use std::hint::spin_loop;
}

pub(crate) mod sync {
    pub(crate) use std::sync::{Arc, Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic};
}

pub(crate) mod cell {
    use std::mem::MaybeUninit;

    /// An access reads, or writes, the whole value without atomics: Miri reports one that is not ordered against another
    /// thread's.
    #[derive(Debug)]
    pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(std::cell::UnsafeCell::new(value))
        }

        pub(crate) fn with<R>(&self, look: impl FnOnce(*const T) -> R) -> R {
            // SAFETY: the cell's own memory. Other threads of the model may use it at the same time; that is a race, and what
            // Miri is to report.
            let _ = unsafe { self.0.get().cast::<MaybeUninit<T>>().read() };
            look(self.0.get())
        }

        pub(crate) fn with_mut<R>(&self, change: impl FnOnce(*mut T) -> R) -> R {
            let value = self.0.get().cast::<MaybeUninit<T>>();
            // SAFETY: as in `with`.
            let now = unsafe { value.read() };
            // SAFETY: as in `with`; the value that was read.
            unsafe { value.write(now) };
            change(self.0.get())
        }
    }
}

pub(crate) mod thread {
    pub(crate) use std::thread::yield_now;

    /// What goes from one thread of a model to another.
    struct Sent<T>(T);

    // SAFETY: what the models send is made of their own locks, atomics and cells, whose use by several threads Miri checks.
    unsafe impl<T> Send for Sent<T> {}

    impl<T> Sent<T> {
        /// The whole of it: a closure that uses the field would capture that alone.
        fn take(self) -> T {
            self.0
        }
    }

    #[derive(Debug)]
    pub(crate) struct JoinHandle<T>(std::thread::JoinHandle<Sent<T>>);

    pub(crate) fn spawn<T: 'static>(run: impl FnOnce() -> T + 'static) -> JoinHandle<T> {
        let run = Sent(run);
        JoinHandle(std::thread::spawn(move || Sent(run.take()())))
    }

    impl<T> JoinHandle<T> {
        pub(crate) fn join(self) -> std::thread::Result<T> {
            self.0.join().map(Sent::take)
        }
    }
}

pub(crate) mod future {
    use std::pin::pin;
    use std::sync::Arc;
    use std::task::{Context, Poll, Wake, Waker};
    use std::thread::{self, Thread};

    struct Unpark(Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
        let mut future = pin!(future);
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        loop {
            match future.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(output) => return output,
                Poll::Pending => thread::park(),
            }
        }
    }
}
