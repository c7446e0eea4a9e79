//! Shared by the benches: rivals that are sampled in turns within one run, so that the machine's noise falls on all of
//! them alike, and the lines at the end.
//!
//! `cargo bench` runs everything. With `REVOCABLE_BENCH=short` in the environment, or under `cargo test --benches`, a
//! run takes seconds and is less exact. Names of criterion's benchmarks, and its options, may follow `cargo bench --`.

use criterion::{BenchmarkId, Criterion};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::process::Command;
use std::time::{Duration, Instant};

pub(crate) mod bare;
#[path = "../../examples/revoke/figures.rs"]
pub(crate) mod figures;
pub(crate) mod peer;
pub(crate) mod plot;
pub(crate) mod raw;
#[path = "../../examples/revoke/svg.rs"]
mod svg;
pub(crate) mod uffd;

use figures::nanos;

/// True if a run takes a few seconds only.
pub(crate) fn short() -> bool {
    std::env::var("REVOCABLE_BENCH").is_ok_and(|v| v == "short") || !std::env::args().any(|arg| arg == "--bench")
}

/// `full`, or `short` in a short run.
pub(crate) fn pick<T>(full: T, in_short: T) -> T {
    if short() { in_short } else { full }
}

/// Prints what is left out and why. Panics where nothing may be left out.
pub(crate) fn skip(what: &str, why: &str) {
    println!("SKIP: {what}: {why}");
    assert!(!std::env::var("REVOCABLE_CI").is_ok_and(|v| v == "1"), "nothing may be skipped here: {what}: {why}");
}

/// Nanoseconds per operation, by name.
#[derive(Default)]
pub(crate) struct Samples {
    by_name: BTreeMap<String, Vec<f64>>,
    /// In the order they came.
    names: Vec<String>,
}

impl Samples {
    /// `took` for `operations` of them.
    pub(crate) fn record(&mut self, name: &str, operations: u64, took: Duration) {
        if !self.by_name.contains_key(name) {
            self.names.push(name.to_owned());
        }
        let samples = self.by_name.entry(name.to_owned()).or_default();
        samples.push(took.as_nanos() as f64 / operations as f64);
    }

    /// The least of the samples, in ns, that a share `share` of them does not exceed.
    pub(crate) fn quantile(&self, name: &str, share: f64) -> Option<f64> {
        let mut ascending = self.by_name.get(name)?.clone();
        ascending.sort_by(f64::total_cmp);
        figures::quantile(&ascending, share)
    }

    pub(crate) fn p50(&self, name: &str) -> Option<f64> {
        self.quantile(name, 0.5)
    }

    /// In the order they came.
    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    pub(crate) fn table(&self, title: &str) {
        println!("\n{title}\n{:<44}{:>12}{:>12}{:>12}{:>9}", "", "p10", "p50", "p99", "samples");
        for name in &self.names {
            let at = |share| nanos(self.quantile(name, share).unwrap_or(f64::NAN));
            println!("{name:<44}{:>12}{:>12}{:>12}{:>9}", at(0.1), at(0.5), at(0.99), self.by_name[name].len());
        }
    }
}

/// Runs the given number of operations, and reports the time of each, or of all, to its second argument.
type Run<'a> = Box<dyn FnMut(u64, &mut dyn FnMut(u64, Duration)) + 'a>;

struct Rival<'a> {
    name: String,
    turn: u64,
    run: Run<'a>,
}

/// Rivals that take turns.
pub(crate) struct Contest<'a> {
    group: &'static str,
    rivals: Vec<Rival<'a>>,
    /// The pause between turns, so that a monitor that still spins does not disturb the next rival.
    pause: Duration,
}

impl<'a> Contest<'a> {
    pub(crate) fn new(group: &'static str, pause: Duration) -> Self {
        Self { group, rivals: Vec::new(), pause }
    }

    /// A rival whose operations are timed one by one, `turn` of them in each turn.
    pub(crate) fn each(
        &mut self,
        name: &str,
        turn: u64,
        run: impl FnMut(u64, &mut dyn FnMut(u64, Duration)) + 'a,
    ) -> &mut Self {
        self.rivals.push(Rival { name: name.to_owned(), turn, run: Box::new(run) });
        self
    }

    /// A rival whose operations are too short to be timed one by one; `operations(n)` does `n`. A turn takes `turn`.
    pub(crate) fn many(&mut self, name: &str, turn: Duration, mut operations: impl FnMut(u64) + 'a) -> &mut Self {
        let mut n = 1;
        loop {
            let since = Instant::now();
            operations(black_box(n));
            let took = since.elapsed();
            if took > turn / 2 {
                let fitting = (n as f64 * turn.as_secs_f64() / took.as_secs_f64()).ceil().max(1.0);
                #[expect(clippy::cast_possible_truncation, reason = "at most twice what n was")]
                let fitting = fitting as u64;
                n = fitting;
                break;
            }
            n *= 2;
        }
        self.each(name, n, move |n, report| {
            let since = Instant::now();
            operations(black_box(n));
            report(n, since.elapsed());
        })
    }

    /// `rounds` turns of every rival, in the given order and in the opposite one by turns: of two neighbours each comes after
    /// the other, and finds what that has left in the caches, as often.
    pub(crate) fn run(&mut self, rounds: u32, samples: &mut Samples) {
        for round in 0..rounds {
            let rivals: &mut dyn Iterator<Item = &mut Rival<'_>> =
                if round % 2 == 0 { &mut self.rivals.iter_mut() } else { &mut self.rivals.iter_mut().rev() };
            for rival in rivals {
                std::thread::sleep(self.pause);
                (rival.run)(rival.turn, &mut |operations, took| {
                    // The first round warms up.
                    if round > 0 {
                        samples.record(&rival.name, operations, took);
                    }
                });
            }
        }
    }

    /// The same rivals, one after the other, for criterion: its statistics, and its comparison with the run before.
    pub(crate) fn criterion(mut self) {
        if short() {
            return;
        }
        let mut criterion = Criterion::default()
            .warm_up_time(Duration::from_millis(200))
            .measurement_time(Duration::from_millis(800))
            .sample_size(10)
            .configure_from_args();
        let mut group = criterion.benchmark_group(self.group);
        for rival in &mut self.rivals {
            group.bench_function(BenchmarkId::from_parameter(&rival.name), |b| {
                b.iter_custom(|n| {
                    let mut sum = Duration::ZERO;
                    (rival.run)(n, &mut |_, took| sum += took);
                    sum
                });
            });
        }
        group.finish();
    }
}

/// Ratios of p50s, each with the limit that it must keep.
#[derive(Default)]
pub(crate) struct Ratios(Vec<(String, f64, Option<f64>)>);

impl Ratios {
    pub(crate) fn add(&mut self, name: &str, value: f64, at_most: Option<f64>) {
        self.0.push((name.to_owned(), value, at_most));
    }

    /// The p50 of `of` by the p50 of `to`.
    pub(crate) fn of(&mut self, samples: &Samples, name: &str, of: &str, to: &str, at_most: Option<f64>) {
        if let (Some(of), Some(to)) = (samples.p50(of), samples.p50(to)) {
            self.add(name, of / to, at_most);
        }
    }

    /// True if a limit was exceeded.
    pub(crate) fn missed(&self) -> bool {
        self.0.iter().any(|(_, value, at_most)| at_most.is_some_and(|at_most| *value > at_most))
    }

    /// Prints the machine, and every ratio.
    pub(crate) fn print(&self) {
        println!("\n{}", provenance());
        println!("load {}", read("/proc/loadavg").trim());
        for (name, value, _) in &self.0 {
            println!("ratio {name} {value:.4}");
        }
        for (name, value, at_most) in &self.0 {
            if let Some(at_most) = at_most {
                let verdict = if value <= at_most { "reached" } else { "MISSED" };
                println!("{verdict} {name} <= {at_most}");
            }
        }
    }
}

/// Machine, kernel, commit and date, to be quoted with a figure.
pub(crate) fn provenance() -> String {
    let kernel = read("/proc/sys/kernel/osrelease");
    let commit = said_by("git", &["describe", "--always", "--dirty", "--exclude=*"]);
    let date = said_by("date", &["-u", "+%F"]);
    format!("machine {}; kernel {}; commit {commit}; {date}", machine(), kernel.trim())
}

fn machine() -> String {
    let info = read("/proc/cpuinfo");
    let field = |name: &str| {
        let line = info.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split(": ").nth(1)).unwrap_or("").to_owned()
    };
    // All CPUs, and not only those to which this thread is bound.
    let cpus = info.lines().filter(|line| line.starts_with("processor")).count();
    let guest = if info.contains("hypervisor") { ", virtual" } else { "" };
    format!("{} {}, {cpus} CPUs{guest}", std::env::consts::ARCH, field("model name"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|_| "unknown".to_owned())
}

fn said_by(command: &str, args: &[&str]) -> String {
    let output = Command::new(command).args(args).output().ok().filter(|output| output.status.success());
    output.map_or("unknown".to_owned(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
