//! `revoke stress`: revokes and restores under load, and checks G1 (revoked means revoked) and G2 (nothing is lost).
//!
//! Every access is judged by the windows (see [`window`]) in which it ran. Wholly inside a disabled window it must not
//! go through, and wholly inside an enabled one it must not be refused. While the region is disabled, the owner puts
//! stamps into it that no access may ever see, and watches that no store arrives. Each worker finds its own stores
//! again.

mod changer;
mod hand;
mod ledger;
mod random;
mod report;
mod window;
mod worker;

use crate::device::{self, Way as Strategy};
use crate::output::Failed;
use crate::spread::Spread;
use crate::{Verdict, interrupt};
use changer::Changer;
use clap::ValueEnum;
use hand::{Hand, Way};
use ledger::{Ledger, MOST_WORKERS};
use random::Random;
use report::{Progress, Report};
use revocable_mmio::{OnDisabled, Region};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use window::Clock;
use worker::{Tally, Worker};

const MOST_PEERS: usize = 64;
/// How long a thread may take to end after the last `enable()`, before it counts as lost in a wait.
const END: Duration = Duration::from_secs(20);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How long to run; Ctrl-C ends it earlier, with its summary.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,

    /// Threads that access the region, beside the one that revokes it.
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..=(MOST_WORKERS - MOST_PEERS) as i64))]
    threads: u16,

    /// Other processes that map the region and access it, too. They are reached by the strategy withdraw only. Under the
    /// policy all-ones they get ones while it is disabled, and SIGBUS under all others.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=MOST_PEERS as i64))]
    peers: u16,

    /// The region's size.
    #[arg(long, value_name = "BYTES", default_value = "16M", value_parser = device::size)]
    size: usize,

    /// How it is revoked.
    #[arg(long, value_enum, default_value_t)]
    strategy: Strategy,

    /// The mappings' policy while it is disabled.
    #[arg(long, value_enum, default_value_t)]
    policy: Policy,

    /// Repeats the choices of an earlier run; threads still race.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Print the region's counters as Prometheus text instead of the summary.
    #[arg(long, conflicts_with = "json")]
    prometheus: bool,

    /// Leaves a system call out of every revocation, to show that this test notices.
    #[cfg(revocable_inject)]
    #[arg(long, value_name = "CALL")]
    leave_out: Option<String>,
}

/// `--policy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Policy {
    /// Mappings of every policy at once.
    #[default]
    Mixed,
    /// SIGBUS, EFAULT, `Err(Disabled)`.
    Sigbus,
    /// Loads give all-ones, stores are lost.
    AllOnes,
    /// Accesses wait.
    Block,
}

impl Policy {
    fn covers(self, policy: OnDisabled) -> bool {
        match self {
            Policy::Mixed => true,
            Policy::Sigbus => policy == OnDisabled::Sigbus,
            Policy::AllOnes => policy == OnDisabled::AllOnes,
            Policy::Block => policy == OnDisabled::Block,
        }
    }

    /// What other processes get while the region is disabled: they have no mappings of the crate's.
    fn of_peers(self) -> OnDisabled {
        if self == Policy::AllOnes { OnDisabled::AllOnes } else { OnDisabled::Sigbus }
    }
}

/// The state that all threads share.
struct Shared {
    region: Region,
    clock: Clock,
    ledger: Ledger,
    tallies: Vec<Tally>,
    /// How long the changer's calls took.
    disables: Spread,
    enables: Spread,
    stop: AtomicBool,
    violation: Mutex<Option<String>>,
}

impl Shared {
    /// Runs `step` until the end. The first violation ends the whole run.
    fn repeat(&self, mut step: impl FnMut() -> Result<(), String>) {
        while !self.stop.load(Ordering::Relaxed) {
            if let Err(e) = step() {
                self.violate(e);
            }
        }
    }

    fn violate(&self, what: String) {
        self.stop.store(true, Ordering::Relaxed);
        let mut first = self.violation.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        first.get_or_insert(what);
    }
}

pub(crate) fn run(args: &Args, as_json: bool) -> Result<Verdict, Failed> {
    let asked_to_end = interrupt::flag()?;
    let region = region(args)?;
    let ways = Way::all(args.policy, &region);
    if ways.is_empty() {
        return Err(format!("nothing here can use a mapping of policy {:?}: see `revoke probe`", args.policy).into());
    }
    let peers = std::iter::repeat_n(Way::Peer(args.policy.of_peers()), args.peers.into());
    let ways: Vec<Way> = ways.into_iter().cycle().take(args.threads.into()).chain(peers).collect();
    let hands = ways.iter().map(|way| Hand::new(*way, &region)).collect::<Result<Vec<_>, _>>()?;
    let ledger = Ledger::new(&region, ways.iter().map(|way| way.store_mask()).collect());
    ledger.open(&region, 0)?;
    let seed = args.seed.unwrap_or_else(|| std::process::id().into());
    let tallies = ways.iter().map(|_| Tally::default()).collect();
    let (clock, stop) = (Clock::new(), AtomicBool::new(false));
    let (disables, enables) = (Spread::new(), Spread::new());
    let violation = Mutex::new(None);
    let shared = Arc::new(Shared { region, clock, ledger, tallies, disables, enables, stop, violation });

    #[cfg(revocable_inject)]
    revocable_mmio::inject::leave_out(args.leave_out.clone().map(|call| &*call.leak()));

    let began = Instant::now();
    let ended = start(&shared, hands, seed)?;
    let mut progress = Progress::new();
    while !shared.stop.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(50));
        if began.elapsed() >= Duration::from_secs(args.seconds) || asked_to_end.load(Ordering::Relaxed) {
            shared.stop.store(true, Ordering::Relaxed);
        }
        progress.show(&shared, began.elapsed(), args.seconds);
    }
    progress.end();
    wait_for(&shared, &ended, ways.len() + 1);

    let report = Report { shared: &shared, ways: &ways, took: began.elapsed(), seed };
    report.print(as_json, args.prometheus)
}

fn region(args: &Args) -> Result<Region, Failed> {
    match args.strategy {
        Strategy::Withdraw => device::build_shared("stress", args.size, args.policy.of_peers()),
        Strategy::Best if args.peers > 0 => device::build_shared("stress", args.size, args.policy.of_peers()),
        _ if args.peers > 0 => {
            let why = "--peers needs --strategy withdraw: the other strategies revoke in this process only";
            <crate::Cli as clap::CommandFactory>::command().error(clap::error::ErrorKind::ArgumentConflict, why).exit()
        }
        strategy => device::build("stress", args.size, strategy),
    }
}

/// Starts the threads; each sends its name when it ends.
fn start(shared: &Arc<Shared>, hands: Vec<Hand>, seed: u64) -> Result<mpsc::Receiver<usize>, Failed> {
    let (tell, ended) = mpsc::channel();
    let count = hands.len();
    for (number, hand) in hands.into_iter().enumerate() {
        let (shared, tell) = (Arc::clone(shared), tell.clone());
        thread::Builder::new().name(format!("worker {number}")).spawn(move || {
            let mut worker = Worker {
                number,
                hand,
                clock: &shared.clock,
                ledger: &shared.ledger,
                tally: &shared.tallies[number],
                random: Random::new(seed + 1 + number as u64),
                doubtful: vec![false; shared.ledger.pages()],
            };
            shared.repeat(|| worker.step());
            let _ = tell.send(number);
        })?;
    }
    let shared = Arc::clone(shared);
    thread::Builder::new().name("changer".to_owned()).spawn(move || {
        let Shared { region, clock, ledger, disables, enables, .. } = &*shared;
        let mut changer = Changer { region, clock, ledger, random: Random::new(seed), disables, enables };
        shared.repeat(|| changer.step());
        let _ = tell.send(count);
    })?;
    Ok(ended)
}

/// Waits for `count` threads. A thread that does not end, though the region is enabled, has missed its wake.
fn wait_for(shared: &Shared, ended: &mpsc::Receiver<usize>, count: usize) {
    let until = Instant::now() + END;
    let mut missing: Vec<usize> = (0..count).collect();
    while !missing.is_empty() {
        match ended.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(number) => missing.retain(|n| *n != number),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                shared.violate(format!("G5: threads {missing:?} of {count} still wait {END:?} after the end"));
                return;
            }
            // A thread panicked, and its message is above.
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                shared.violate(format!("G3: threads {missing:?} of {count} ended in a panic"));
                return;
            }
        }
    }
}
