//! The order in which the content moves between the window and the vault.

use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::sync::{Mutation, broken};
use crate::sys::{SysError, left_out};
use nix::errno::Errno;
use std::ops::Range;

/// The window, the vault, and what holds pages on the way. The real ones make system calls; the model's are a fake kernel.
/// Ranges are the same in both files.
pub(super) trait Files {
    /// Refers to pages of the window.
    type Pipes;

    /// How much is moved at once, at multiples of it.
    fn part(&self) -> usize;
    /// Fails if the window's file is not there any more.
    fn check(&self) -> Result<(), SysError>;
    /// Empty ones.
    fn take_pipes(&self) -> Result<Self::Pipes, SysError>;
    /// Has the pipes hold nothing.
    fn let_go(&self, pipes: &Self::Pipes);
    /// Takes back pipes that hold nothing.
    fn give_back(&self, pipes: Self::Pipes);
    /// True if the pipes have what they held.
    fn are_there(&self, pipes: &Self::Pipes) -> bool;
    /// Holds the window's pages. Returns how many bytes: fewer only where the file ends.
    fn hold(&self, pipes: &Self::Pipes, part: Range<usize>) -> Result<usize, SysError>;
    /// Returns once no other process's system call holds the window's file. Changes nothing.
    fn wait_for_peers(&self) -> Result<(), SysError> {
        Ok(())
    }
    /// Takes pages out of the window, and out of every mapping.
    fn take_out(&self, part: Range<usize>) -> Result<(), SysError>;
    /// Puts in their place what an access is to get.
    fn refuse(&self, part: Range<usize>);
    /// Copies the first bytes that the pipes hold into the vault. Returns how many, at least one.
    fn copy(&self, pipes: &Self::Pipes, part: Range<usize>) -> Result<usize, SysError>;
    /// Makes zeroes of a part of the vault.
    fn clear(&self, part: Range<usize>) -> Result<(), SysError>;
    /// Copies from the vault into the window, in order. A page has its content before the size covers it, so no zeroes are
    /// ever read.
    fn write(&self, part: Range<usize>) -> Result<(), SysError>;
    /// Cuts off what a peer has added.
    fn cut(&self) -> Result<(), SysError>;
}

/// A part of the content that is in pipes alone, since copying it into the vault has failed.
#[derive(Debug)]
pub(super) struct Held<P> {
    pipes: P,
    part: Range<usize>,
}

/// What the pipes have alone, if anything. The thread that moves the content has it.
pub(super) type Rest<F> = Option<Held<<F as Files>::Pipes>>;

/// Both files, and where the content is.
#[derive(Debug)]
pub(super) struct Transfer<F> {
    pub(super) files: F,
    pub(super) len: usize,
    /// From here on the content is in the vault, and the window has nothing of it; before that it is in the window. Written
    /// by the thread that moves the content.
    emptied_from: AtomicUsize,
    /// Bytes of content that a peer had cut off, or that were in a pipe that other code has closed.
    lost: AtomicUsize,
    /// The emptying under way is to be undone.
    abandoned: AtomicBool,
    /// Other processes may hold the window's file.
    has_peers: AtomicBool,
}

/// True where a test leaves this step out.
fn without(step: &'static str, mutation: Mutation) -> bool {
    left_out(step) || broken(mutation)
}

impl<F: Files> Transfer<F> {
    /// The content is in the window.
    pub(super) fn new(files: F, len: usize) -> Self {
        let emptied_from = AtomicUsize::new(len);
        let [abandoned, has_peers] = [(); 2].map(|()| AtomicBool::new(false));
        Self { files, len, emptied_from, lost: AtomicUsize::new(0), abandoned, has_peers }
    }

    pub(super) fn emptied_from(&self) -> usize {
        self.emptied_from.load(Ordering::Acquire)
    }

    pub(super) fn is_full(&self) -> bool {
        self.emptied_from() == self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.emptied_from() == 0
    }

    /// The bytes that were lost since the last call.
    pub(super) fn take_lost(&self) -> usize {
        self.lost.swap(0, Ordering::Relaxed)
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Acquire)
    }

    pub(super) fn abandon(&self, abandoned: bool) {
        self.abandoned.store(abandoned, Ordering::Release);
    }

    /// From now on another process may hold the window's file.
    pub(super) fn has_peers(&self) {
        // Relaxed: a change that does not see it has begun before that process gets the file.
        self.has_peers.store(true, Ordering::Relaxed);
    }

    /// Empties the window, or leaves it as it was. If neither can be had, the next try goes on.
    pub(super) fn empty(&self, rest: &mut Rest<F>) -> Result<(), SysError> {
        let emptied = self.empty_all(rest);
        if emptied.is_err() {
            let _ = self.fill_all(rest);
        }
        emptied
    }

    /// Fills the window, or leaves it as it was. If neither can be had, the next try goes on.
    pub(super) fn fill(&self, rest: &mut Rest<F>) -> Result<(), SysError> {
        let filled = self.fill_all(rest);
        if filled.is_err() {
            // Stores that were made to the filled part meanwhile are kept.
            let _ = self.empty_all(rest);
        }
        filled
    }

    /// Empties parts from the end backwards, since a file is shortened at its end.
    fn empty_all(&self, rest: &mut Rest<F>) -> Result<(), SysError> {
        self.ready(rest)?;
        let pipes = self.files.take_pipes()?;
        while !self.is_empty() {
            let end = self.emptied_from();
            let start = (end - 1) / self.files.part() * self.files.part();
            let held = match self.is_abandoned() {
                true => Err(SysError::new("ftruncate", Errno::EBUSY)),
                false => self.hold_and_drop(&pipes, start..end),
            };
            let len = match held {
                Ok(len) => len,
                Err(e) => {
                    self.files.let_go(&pipes);
                    self.files.give_back(pipes);
                    return Err(e);
                }
            };
            // Now the pipes alone have the content.
            self.emptied_from.store(start, Ordering::Release);
            self.lost.fetch_add(end - start - len, Ordering::Relaxed);
            let mut part = start..start + len;
            if let Err(e) = self.keep(&pipes, &mut part) {
                *rest = Some(Held { pipes, part });
                return Err(e);
            }
        }
        self.files.give_back(pipes);
        Ok(())
    }

    /// Takes a part out of the window, and returns how many bytes of it the pipes hold: fewer than it has if a peer had cut
    /// the rest off, which is zeroes in the vault. On an error the content is where it was.
    fn hold_and_drop(&self, pipes: &F::Pipes, part: Range<usize>) -> Result<usize, SysError> {
        if without("holding before emptying", Mutation::HoldLate) {
            self.drop_part(part.clone())?;
        }
        let len = self.files.hold(pipes, part.clone())?;
        if without("emptying before copying", Mutation::CopyEarly) {
            self.copy(pipes, &mut (part.start..part.start + len))?;
        }
        self.files.clear(part.start + len..part.end)?;
        // An emptying that waits for a peer is given up here, with nothing to undo, and not in the call that empties. A peer
        // that takes the file between the two has the window empty for a moment.
        if self.has_peers.load(Ordering::Relaxed) {
            self.files.wait_for_peers()?;
            if self.is_abandoned() {
                return Err(SysError::new("ftruncate", Errno::EBUSY));
            }
        }
        self.drop_part(part)?;
        Ok(len)
    }

    /// Copies what the pipes alone have into the vault; `part` is what is left of it.
    fn keep(&self, pipes: &F::Pipes, part: &mut Range<usize>) -> Result<(), SysError> {
        if without("emptying before copying", Mutation::CopyEarly) { Ok(()) } else { self.copy(pipes, part) }
    }

    fn copy(&self, pipes: &F::Pipes, part: &mut Range<usize>) -> Result<(), SysError> {
        while part.start < part.end {
            part.start += self.files.copy(pipes, part.clone())?;
        }
        Ok(())
    }

    /// Copies parts from the vault into the window, in order.
    pub(super) fn fill_all(&self, rest: &mut Rest<F>) -> Result<(), SysError> {
        self.ready(rest)?;
        while !self.is_full() {
            let at = self.emptied_from();
            let end = self.len.min(at + self.files.part());
            self.files.write(at..end).inspect_err(|_| {
                // The vault still has the part.
                let _ = self.drop_part(at..end);
            })?;
            self.emptied_from.store(end, Ordering::Release);
        }
        // A peer may have made it longer meanwhile.
        self.files.cut()
    }

    /// Looks whether the window's file is there, and has content nowhere but in both files.
    fn ready(&self, rest: &mut Rest<F>) -> Result<(), SysError> {
        self.files.check()?;
        if let Some(Held { pipes, part }) = rest {
            if self.files.are_there(pipes) {
                self.keep(pipes, part)?;
            } else {
                // Other code has closed them: what they alone had is lost.
                self.files.clear(part.clone())?;
                self.lost.fetch_add(part.len(), Ordering::Relaxed);
            }
            *rest = None;
        }
        Ok(())
    }

    /// Takes a part out of the window, whatever becomes of its content.
    pub(super) fn drop_part(&self, part: Range<usize>) -> Result<(), SysError> {
        self.files.take_out(part.clone())?;
        if !broken(Mutation::OnesLate) {
            self.files.refuse(part);
        }
        Ok(())
    }
}

#[cfg(all(test, not(revocable_model)))]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    /// A window that a peer holds as soon as its pages are held, until the test says that it has let go.
    struct Held {
        waits: Mutex<Sender<()>>,
        lets_go: Mutex<Receiver<()>>,
        taken_out: AtomicBool,
    }

    impl Files for Held {
        type Pipes = ();

        fn part(&self) -> usize {
            1
        }
        fn check(&self) -> Result<(), SysError> {
            Ok(())
        }
        fn take_pipes(&self) -> Result<(), SysError> {
            Ok(())
        }
        fn let_go(&self, (): &()) {}
        fn give_back(&self, (): ()) {}
        fn are_there(&self, (): &()) -> bool {
            true
        }
        fn hold(&self, (): &(), part: Range<usize>) -> Result<usize, SysError> {
            Ok(part.len())
        }
        fn wait_for_peers(&self) -> Result<(), SysError> {
            self.waits.lock().expect("no panic").send(()).expect("the test listens");
            self.lets_go.lock().expect("no panic").recv().expect("the test tells");
            Ok(())
        }
        fn take_out(&self, _: Range<usize>) -> Result<(), SysError> {
            self.taken_out.store(true, Ordering::SeqCst);
            Ok(())
        }
        fn refuse(&self, _: Range<usize>) {}
        fn copy(&self, (): &(), part: Range<usize>) -> Result<usize, SysError> {
            Ok(part.len())
        }
        fn clear(&self, _: Range<usize>) -> Result<(), SysError> {
            Ok(())
        }
        fn write(&self, _: Range<usize>) -> Result<(), SysError> {
            Ok(())
        }
        fn cut(&self) -> Result<(), SysError> {
            Ok(())
        }
    }

    #[test]
    fn an_emptying_that_is_given_up_while_a_peer_has_the_file_empties_nothing() {
        for given_up in [false, true] {
            let ((waits, is_waiting), (let_go, lets_go)) = (channel(), channel());
            let (waits, lets_go) = (Mutex::new(waits), Mutex::new(lets_go));
            let held = Held { waits, lets_go, taken_out: AtomicBool::new(false) };
            let transfer = Arc::new(Transfer::new(held, 1));
            transfer.has_peers();
            let its = Arc::clone(&transfer);
            let emptying = std::thread::spawn(move || its.empty(&mut None));
            // Without the look it would never come.
            is_waiting.recv_timeout(Duration::from_secs(20)).expect("it looks at the lock");
            transfer.abandon(given_up);
            let_go.send(()).expect("it waits");
            let emptied = emptying.join().expect("no panic");
            assert_eq!(emptied.map_err(|e| e.errno), if given_up { Err(Errno::EBUSY) } else { Ok(()) });
            assert_eq!(transfer.files.taken_out.load(Ordering::SeqCst), !given_up, "given up: {given_up}");
            assert_eq!(transfer.is_full(), given_up);
        }
    }
}
