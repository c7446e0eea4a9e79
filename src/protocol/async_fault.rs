//! Asynchronous faults, like KVM's async page faults: the memory is not there now, and a completion says when it is.
//!
//! A queue belongs to one consumer, a vCPU for instance. A fault that cannot be resolved now goes on the region's list; the
//! thread that ends the change of state it waits for completes it. No thread and no runtime is needed: a completion is an
//! entry in the queue and a count in its eventfd, and it wakes the task that awaits the token.

use crate::protocol::error::SubmitError;
use crate::protocol::fault::NotResolved;
use crate::protocol::gate::Phase;
use crate::protocol::policy::OnDisabled;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Mutation, Mutex, broken};
use crate::sys::identity::Identity;
use crate::users::{discard, guarded};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

#[cfg(all(test, revocable_model))]
mod model;
mod ready;

use ready::Ready;

/// A queue in which the completions of one consumer's faults arrive. The guide shows it beside
/// [event loops](crate::guide::event_loops).
///
/// [`AsFd`] gives an eventfd for epoll, readable while completions wait. Cheap to clone: clones are the same queue. In a
/// forked child it is empty and stays so.
///
/// ```
/// use revocable_mmio::{Caller, FaultQueue, OnDisabled, SubmitError, Submitted, fault::FaultFlags};
/// # let region = revocable_mmio::Region::builder(64 << 10).disabled().build()?;
/// let queue = FaultQueue::new(1)?; // poll its AsFd
/// let vcpu = Caller::new(FaultFlags::DEFAULT).on_disabled(OnDisabled::Block);
/// let Submitted::Queued(token) = region.fault_async(0, vcpu, &queue)? else { unreachable!() };
/// assert!(matches!(region.fault_async(4096, vcpu, &queue), Err(SubmitError::Full { limit: 1 })));
/// token.cancel();
/// assert!(queue.next().is_some_and(|done| done.result.is_err()) && queue.outstanding() == 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct FaultQueue {
    shared: Arc<QueueShared>,
}

struct QueueShared {
    limit: usize,
    /// Submitted and not yet taken from the queue.
    outstanding: AtomicUsize,
    completed: Mutex<VecDeque<Completion>>,
    /// Counts the entries of `completed`, and changes under its lock: a count that came after its completion was taken
    /// would leave the eventfd readable with nothing to read.
    ready: Ready,
}

/// A fault that is decided.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Completion {
    /// The fault's [`FaultToken::id`].
    pub id: u64,
    /// The page that was asked for: an offset in the region, in bytes.
    pub offset: usize,
    /// `Ok`: the region is enabled, repeat the access. `Err`: why this fault will not be resolved.
    pub result: Result<(), NotResolved>,
}

/// The outcome of submitting a fault.
#[derive(Debug)]
pub enum Submitted {
    /// The region is enabled and not busy: repeat the access at once. Nothing was queued.
    Ready,
    /// The fault was queued; the token completes later.
    Queued(FaultToken),
    /// This page's fault is in this queue already; the earlier token completes.
    Pending {
        /// The earlier token's id.
        id: u64,
    },
}

impl FaultQueue {
    /// A queue for at most `limit` faults that are submitted and not taken yet (KVM has 64 for a vCPU). At the limit a
    /// submission is refused ([`SubmitError::Full`]), and the caller waits for its fault itself
    /// ([`Region::fault_in`](crate::Region::fault_in)), as KVM does.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn new(limit: usize) -> Result<Self, SubmitError> {
        let completed = Mutex::new(VecDeque::new());
        let shared = QueueShared { limit, outstanding: AtomicUsize::new(0), completed, ready: Ready::new()? };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The oldest completion, if there is one. Never blocks.
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn next(&self) -> Option<Completion> {
        if self.shared.ready.is_inherited() {
            return None;
        }
        let mut completed = self.shared.completed.lock();
        let completion = completed.pop_front()?;
        self.shared.ready.take_one();
        drop(completed);
        self.shared.outstanding.fetch_sub(1, Ordering::Relaxed);
        Some(completion)
    }

    /// How many faults are submitted and not taken.
    pub fn outstanding(&self) -> usize {
        self.shared.outstanding.load(Ordering::Relaxed)
    }
}

impl FaultQueue {
    /// True if the queue belongs to the process that this one was forked from.
    pub(crate) fn is_inherited(&self) -> bool {
        self.shared.ready.is_inherited()
    }
}

impl AsFd for FaultQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.ready.as_fd()
    }
}

impl fmt::Debug for FaultQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultQueue")
            .field("outstanding", &self.outstanding())
            .field("limit", &self.shared.limit)
            .finish()
    }
}

/// A fault that is not decided yet.
struct Pending {
    id: u64,
    offset: usize,
    policy: OnDisabled,
    queue: Arc<QueueShared>,
    state: Mutex<TokenState>,
}

#[derive(Default)]
struct TokenState {
    result: Option<Result<(), NotResolved>>,
    waker: Option<Waker>,
}

impl Pending {
    /// True if the fault belongs to the process that this one was forked from. Its locks may then be held for ever, and the
    /// eventfd is the parent's.
    fn is_inherited(&self) -> bool {
        self.queue.ready.is_inherited()
    }

    /// Completes the fault, once.
    fn complete(&self, result: Result<(), NotResolved>) {
        if self.is_inherited() {
            return;
        }
        let mut state = self.state.lock();
        if state.result.is_some() && !broken(Mutation::CompleteTwice) {
            return;
        }
        state.result = Some(result);
        let waker = state.waker.take();
        drop(state);
        let mut completed = self.queue.completed.lock();
        completed.push_back(Completion { id: self.id, offset: self.offset, result });
        if broken(Mutation::CountUnlocked) {
            drop(completed);
            self.queue.ready.add_one();
        } else {
            self.queue.ready.add_one();
            drop(completed);
        }
        if let Some(waker) = waker {
            // A task's panic must not stop the change of state that completes the fault.
            let _ = guarded(|| waker.wake());
        }
    }

    fn key(&self) -> Key {
        (self.offset, Arc::as_ptr(&self.queue).addr())
    }

    /// The result of the fault at a region in this phase; `None` if it goes on waiting.
    fn verdict(&self, phase: Phase) -> Option<Result<(), NotResolved>> {
        match (phase, self.policy) {
            (Phase::Open, _) => Some(Ok(())),
            (Phase::Gone, _) | (Phase::Disabled, OnDisabled::Sigbus | OnDisabled::AllOnes) => {
                Some(Err(NotResolved::Sigbus))
            }
            (Phase::Busy, _) | (Phase::Disabled, OnDisabled::Block) => None,
        }
    }
}

/// A submitted fault: a `Future` of its result, which also arrives in its queue. Dropping the token gives the fault up: it
/// completes with `Killed`. In a forked child the token is ready with `Killed` at once, and its parent's fault stays as it
/// is.
pub struct FaultToken {
    pending: Arc<Pending>,
    /// The region's list, as long as the region exists.
    list: Weak<PendingFaults>,
}

impl FaultToken {
    /// The id that tells completions apart; unique in the region.
    pub fn id(&self) -> u64 {
        self.pending.id
    }

    /// Gives the fault up: if it is not decided yet, it completes with [`NotResolved::Killed`].
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn cancel(&self) {
        if self.pending.is_inherited() {
            return;
        }
        if broken(Mutation::CancelLate) {
            self.pending.complete(Err(NotResolved::Killed));
        }
        // Off the list first: a repeated fault on the page must not be referred to a token that is decided already.
        if let Some(list) = self.list.upgrade() {
            list.remove(&self.pending);
        }
        self.pending.complete(Err(NotResolved::Killed));
    }
}

impl Drop for FaultToken {
    fn drop(&mut self) {
        self.cancel();
    }
}

impl Future for FaultToken {
    type Output = Result<(), NotResolved>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.pending.is_inherited() {
            return Poll::Ready(Err(NotResolved::Killed));
        }
        // A waker's clone and destructor are the task's code: no lock is held while they run.
        let waker = context.waker().clone();
        let mut state = self.pending.state.lock();
        if let Some(result) = state.result {
            drop(state);
            discard(waker);
            return Poll::Ready(result);
        }
        let earlier = state.waker.replace(waker);
        drop(state);
        discard(earlier);
        Poll::Pending
    }
}

impl fmt::Debug for FaultToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultToken")
            .field("id", &self.pending.id)
            .field("offset", &self.pending.offset)
            .field("result", &(!self.pending.is_inherited()).then(|| self.pending.state.lock().result).flatten())
            .finish()
    }
}

/// The faults that wait for a region.
pub(crate) struct PendingFaults {
    list: Mutex<PendingList>,
    /// The process that they belong to.
    process: Identity,
}

#[derive(Default)]
struct PendingList {
    next: u64,
    /// By page and queue, of which each has one fault at most.
    faults: BTreeMap<Key, Arc<Pending>>,
}

/// An offset and the address of a queue, which is its own as long as a fault of it is on the list.
type Key = (usize, usize);

impl PendingFaults {
    /// Puts a fault on the list, unless the phase decides it at once. See [`Region::fault_async`](crate::Region::fault_async).
    pub(crate) fn submit(
        self: &Arc<Self>,
        offset: usize,
        policy: OnDisabled,
        queue: &FaultQueue,
        phase: impl Fn() -> Phase,
    ) -> Result<Submitted, SubmitError> {
        if phase() == Phase::Open {
            return Ok(Submitted::Ready);
        }
        let mut list = self.list.lock();
        if let Some(earlier) = list.faults.get(&(offset, Arc::as_ptr(&queue.shared).addr())) {
            return Ok(Submitted::Pending { id: earlier.id });
        }
        let limit = queue.shared.limit;
        let room = |n: usize| (n < limit).then_some(n + 1);
        if queue.shared.outstanding.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_err() {
            return Err(SubmitError::Full { limit });
        }
        list.next += 1;
        let pending = Arc::new(Pending {
            id: list.next,
            offset,
            policy,
            queue: Arc::clone(&queue.shared),
            state: Mutex::new(TokenState::default()),
        });
        list.faults.insert(pending.key(), Arc::clone(&pending));
        // The fault goes on the list first, then the phase is read; a changer sets the phase first, then reads the list.
        // Either the changer sees the fault, or this sees the phase: the list's lock orders the two.
        let decided = if broken(Mutation::SubmitRecheck) { None } else { pending.verdict(phase()) };
        if decided.is_some() {
            list.faults.remove(&pending.key());
        }
        drop(list);
        if let Some(result) = decided {
            pending.complete(result);
        }
        Ok(Submitted::Queued(FaultToken { pending, list: Arc::downgrade(self) }))
    }

    /// Completes the faults that the phase decides. Called after every change of state, once the phase is set.
    ///
    /// The phase is read under the list's lock, when every fault on the list is there already, so no fault is completed by
    /// a phase older than itself.
    pub(crate) fn settle(&self, phase: impl Fn() -> Phase) {
        let before = broken(Mutation::SettleStale).then(&phase);
        let mut list = self.list.lock();
        if list.faults.is_empty() {
            return;
        }
        let phase = before.unwrap_or_else(phase);
        let (decided, waiting) =
            std::mem::take(&mut list.faults).into_iter().partition(|(_, fault)| fault.verdict(phase).is_some());
        list.faults = waiting;
        drop(list);
        for fault in in_order(decided) {
            if let Some(result) = fault.verdict(phase) {
                fault.complete(result);
            }
        }
    }

    fn remove(&self, pending: &Pending) {
        let mut list = self.list.lock();
        // Once a fault is decided, the page may have another.
        if list.faults.get(&pending.key()).is_some_and(|fault| fault.id == pending.id) {
            list.faults.remove(&pending.key());
        }
    }
}

/// Faults in the order in which they were submitted.
fn in_order(faults: BTreeMap<Key, Arc<Pending>>) -> Vec<Arc<Pending>> {
    let mut faults: Vec<_> = faults.into_values().collect();
    faults.sort_unstable_by_key(|fault| fault.id);
    faults
}

impl Default for PendingFaults {
    fn default() -> Self {
        Self { list: Mutex::new(PendingList::default()), process: Identity::current() }
    }
}

impl Drop for PendingFaults {
    fn drop(&mut self) {
        if !self.process.is_current() {
            // A child's copy of the lock may be held for ever.
            return;
        }
        // Wakers run under no lock.
        let faults = std::mem::take(&mut self.list.lock().faults);
        for fault in in_order(faults) {
            fault.complete(Err(NotResolved::Sigbus));
        }
    }
}
