//! An IOMMU's mapping or a memslot: users' code puts it in place and takes it out as a region's state requires.
//!
//! Several threads may want it changed: the thread that revokes, one that maps or unmaps, a vCPU's. One of them at a time
//! calls the user's code, without any lock; the others wait for the end of that call. A thread that is itself inside that
//! call only leaves its wish, which is carried out when the call returns.

use crate::users::{Calling, guarded};
use parking_lot::{Condvar, Mutex};

/// Whether it is wanted in place, and whether it is there.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Place {
    /// A revocation has been announced and not been taken back.
    pub(crate) revoked: bool,
    /// It is taken out for good.
    pub(crate) gone: bool,
    /// It is to be taken out for good, unless that is refused: at the end of the change it is gone, or as before.
    pub(crate) leaving: bool,
    pub(crate) wanted: bool,
    /// It is to be looked at once more, though it is where it is wanted: it is wanted otherwise than before.
    pub(crate) anew: bool,
    there: bool,
}

impl Place {
    pub(crate) fn is_there(self) -> bool {
        self.there
    }
}

#[derive(Default)]
pub(crate) struct Placed {
    state: Mutex<PlacedState>,
    ended: Condvar,
}

#[derive(Default)]
struct PlacedState {
    place: Place,
    /// A thread is running the user's code.
    calling: bool,
}

/// Why the wish failed. From then on what is there counts as what is wanted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused<E> {
    #[error(transparent)]
    By(E),
    /// The user's code panicked while putting it in place; it was then taken out, to be on the safe side.
    #[error("it panicked")]
    Panicked,
}

impl Placed {
    /// The state as of now.
    pub(crate) fn now(&self) -> Place {
        self.state.lock().place
    }

    /// While it lives, the calling thread counts as running the user's code, on behalf of the thread that started it.
    pub(crate) fn inside(&self) -> Calling {
        Calling::of(self)
    }

    /// Makes a wish, and calls the user's code until what is there is what is wanted. True if a call was needed.
    ///
    /// # Errors
    /// The error of the user's code.
    pub(crate) fn change<E>(
        &self,
        wish: impl FnOnce(&mut Place),
        put: impl Fn(bool) -> Result<(), E>,
    ) -> Result<bool, Refused<E>> {
        // What was not put in place is not there, and the other way round.
        self.change_as(wish, |wanted| {
            let answer = put(wanted);
            (wanted == answer.is_ok(), answer)
        })
    }

    /// [`change`](Self::change), where a call that fails may have changed what is there all the same: `put` returns that
    /// too.
    pub(crate) fn change_as<E>(
        &self,
        wish: impl FnOnce(&mut Place),
        put: impl Fn(bool) -> (bool, Result<(), E>),
    ) -> Result<bool, Refused<E>> {
        let mut state = self.state.lock();
        if Calling::is_in(self) {
            wish(&mut state.place);
            return Ok(false);
        }
        while state.calling {
            self.ended.wait(&mut state);
        }
        wish(&mut state.place);
        let mut done = Ok(false);
        loop {
            let anew = std::mem::take(&mut state.place.anew);
            if state.place.wanted == state.place.there && !anew {
                break;
            }
            let wanted = state.place.wanted;
            state.calling = true;
            drop(state);
            let answer = {
                let _inside = Calling::of(self);
                guarded(|| put(wanted))
            };
            state = self.state.lock();
            match answer {
                Some((there, Ok(()))) => {
                    state.place.there = there;
                    done = done.map(|_| true);
                }
                Some((there, Err(e))) => {
                    state.place.there = there;
                    state.place.wanted = there;
                    done = done.and(Err(Refused::By(e)));
                }
                None => {
                    // It may be there all the same: if putting it in place panicked, the user's code is asked to take it
                    // out.
                    state.place.wanted = !wanted;
                    state.place.there = true;
                    done = done.and(Err(Refused::Panicked));
                }
            }
        }
        // Before another thread can make a wish: none may take out what was refused to go.
        if std::mem::take(&mut state.place.leaving) {
            state.place.gone |= !state.place.there;
        }
        state.calling = false;
        drop(state);
        self.ended.notify_all();
        done
    }
}
