//! The cost of taking a shared region away from other processes and of giving it back: by its size, by the number of
//! peers, and by the number of mappings in the owner's process. Beside it are the bare system calls, with the same
//! peers and mappings of files of their own, and a plain copy.
//!
//! Each peer is a process. All pages are in its page tables before each revocation, during which it sleeps: one that
//! runs meanwhile would take the CPU from the owner on a small machine. A full run takes 2 GiB of memory.

#[expect(dead_code, reason = "each bench needs a part of it")]
mod support;

use revocable_mmio::{MapOptions, Mapping, OnDisabled, Region, ShareAccess};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::Instant;
use support::bare::Bare;
use support::figures::{bytes, nanos};
use support::peer::{self, Peer};
use support::raw::{Bytes, Map, PAGE, memfd};
use support::{Ratios, Samples, pick};

const MIB: usize = 1 << 20;
/// Numbers of peers that may only read and of own mappings, one of which is fixed while the other changes. At last the
/// peer may write; from then on another thread empties the window, since that peer could hold its lock.
const STAGES: [(usize, usize, bool); 6] =
    [(1, 0, false), (1, 8, false), (1, 1, false), (8, 1, false), (64, 1, false), (1, 1, true)];

fn main() {
    if peer::was_peer() {
        return;
    }
    let mut samples = Samples::default();
    let mut ratios = Ratios::default();
    let sizes: &[(&'static str, usize, u32)] = pick(
        &[("4k", PAGE, 200), ("64k", 64 << 10, 200), ("1m", MIB, 60), ("16m", 16 * MIB, 15), ("256m", 256 * MIB, 4)],
        &[("4k", PAGE, 5), ("1m", MIB, 5)],
    );
    for (size, len, rounds) in sizes {
        for policy in [OnDisabled::Sigbus, OnDisabled::AllOnes] {
            let case = Case { size, len: *len, policy };
            // The memory that one gets first may be the faster one, for as long as it has it.
            for ours_first in [true, false] {
                case.run(*rounds, ours_first, &mut samples, &mut ratios);
            }
            case.conclude(&samples, &mut ratios);
        }
    }
    samples.table("disable and enable of a shared region: peers (p; w: may write), own mappings (m)");
    ratios.print();
}

/// A memory that is taken away from other processes.
trait Rival {
    fn name(&self) -> &'static str;
    /// A descriptor for peers.
    fn share(&self, writable: bool) -> File;
    fn file(&self) -> &File;
    fn map(&self) -> Own;
    fn take(&self);
    fn give_back(&self);
    /// Changes the content while it is away.
    fn mark(&self, offset: usize, mark: u8);
}

/// A mapping in this process.
enum Own {
    Ours(Mapping),
    Plain(Map),
}

impl Own {
    fn bytes(&self) -> Bytes {
        match self {
            Own::Ours(mapping) => Bytes::of(mapping),
            Own::Plain(map) => map.bytes(),
        }
    }
}

struct Ours {
    region: Region,
    file: File,
}

impl Rival for Ours {
    fn name(&self) -> &'static str {
        "withdraw"
    }

    fn share(&self, writable: bool) -> File {
        let access = if writable { ShareAccess::ReadWrite } else { ShareAccess::ReadOnly };
        self.region.share(access).expect("a descriptor").into()
    }

    fn file(&self) -> &File {
        &self.file
    }

    fn map(&self) -> Own {
        Own::Ours(self.region.map(MapOptions::new()).expect("a mapping"))
    }

    fn take(&self) {
        assert!(self.region.disable().expect("nothing is in the way"));
    }

    fn give_back(&self) {
        assert!(self.region.enable().expect("nothing is in the way"));
    }

    fn mark(&self, offset: usize, mark: u8) {
        self.region.owner().write(offset, mark).expect("the owner's view");
    }
}

struct Plain(Bare, usize);

impl Rival for Plain {
    fn name(&self) -> &'static str {
        "bare"
    }

    fn share(&self, _: bool) -> File {
        self.0.window.try_clone().expect("a descriptor")
    }

    fn file(&self) -> &File {
        &self.0.window
    }

    fn map(&self) -> Own {
        Own::Plain(Map::new(self.file().as_fd(), self.1, PAGE))
    }

    fn take(&self) {
        self.0.take();
    }

    fn give_back(&self) {
        self.0.give_back();
    }

    fn mark(&self, offset: usize, mark: u8) {
        self.0.vault.write_all_at(&[mark], offset as u64).expect("memory");
    }
}

/// A rival with everything that maps its file.
struct Mapped<'a> {
    rival: &'a dyn Rival,
    own: Vec<Own>,
    peers: Vec<Peer>,
}

impl Mapped<'_> {
    /// One round, from all pages mapped everywhere on.
    fn measure(&self, len: usize, policy: OnDisabled, mark: u8, stage: &str, samples: &mut Samples) {
        let Self { rival, own, peers } = self;
        for own in own {
            peer::load_from_all(own.bytes());
        }
        Peer::touch(peers);
        let since = Instant::now();
        rival.take();
        samples.record(&format!("disable {stage} {}", rival.name()), 1, since.elapsed());
        if policy == OnDisabled::AllOnes {
            let mut found = [0; 8];
            rival.file().read_exact_at(&mut found, (len - 8) as u64).expect("its size is kept");
            assert_eq!(found, [0xff; 8], "ones in place of the content");
        } else {
            assert_eq!(rival.file().metadata().expect("fstat").len(), 0, "nothing is left in the window");
        }
        rival.mark(len - PAGE, mark);
        let since = Instant::now();
        rival.give_back();
        samples.record(&format!("enable {stage} {}", rival.name()), 1, since.elapsed());
        assert!(Peer::touch(peers).iter().all(|last| *last == mark), "a peer sees what was stored meanwhile");
    }
}

/// Size by name and in bytes, and policy.
struct Case {
    size: &'static str,
    len: usize,
    policy: OnDisabled,
}

impl Case {
    fn all_ones(&self) -> bool {
        self.policy == OnDisabled::AllOnes
    }

    fn name(&self) -> String {
        format!("{} {}", self.size, if self.all_ones() { "ones" } else { "sigbus" })
    }

    fn stages(&self) -> impl Iterator<Item = (usize, usize, bool, String)> {
        let stages = STAGES.into_iter().filter(|(peers, ..)| *peers <= pick(64, 8));
        stages.map(|(peers, own, writes)| {
            let kind = if writes { "w" } else { "p" };
            (peers, own, writes, format!("{} {peers}{kind} {own}m", self.name()))
        })
    }

    /// All stages. `ours_first` says which rival gets its memory first.
    fn run(&self, rounds: u32, ours_first: bool, samples: &mut Samples, ratios: &mut Ratios) {
        let Self { len, policy, .. } = *self;
        let early = (!ours_first).then(|| Bare::new(len, self.all_ones()));
        let region = Region::builder(len).shared(policy).name("measured").build().expect("a region");
        let file = File::from(region.share(ShareAccess::ReadOnly).expect("a descriptor"));
        let ours = Ours { region, file };
        if ours_first {
            memory(&ours, &self.name().replace(' ', "_"), ratios);
        }
        let plain = Plain(early.unwrap_or_else(|| Bare::new(len, self.all_ones())), len);
        let both = [&ours as &dyn Rival, &plain];
        let mut rivals = both.map(|rival| Mapped { rival, own: Vec::new(), peers: Vec::new() });
        let copy = Copy::new(len);
        for (peers, own, writes, stage) in self.stages() {
            for Mapped { rival, own: owns, peers: all } in &mut rivals {
                owns.clear();
                owns.extend((0..own).map(|_| rival.map()));
                if writes {
                    all.clear();
                }
                all.extend((all.len()..peers).map(|_| Peer::start(&rival.share(writes), len, writes)));
            }
            for round in 0..=rounds {
                // The first round warms up.
                let mut nothing = Samples::default();
                let samples = if round == 0 { &mut nothing } else { &mut *samples };
                rivals.iter().for_each(|one| one.measure(len, policy, round.to_le_bytes()[0], &stage, samples));
                // Then the other one is the first.
                rivals.rotate_left(1);
                let since = Instant::now();
                copy.run();
                samples.record(&format!("copy {}", self.size), 1, since.elapsed());
            }
        }
    }

    fn conclude(&self, samples: &Samples, ratios: &mut Ratios) {
        let at_most = if self.len >= MIB { 1.2 } else { 1.5 };
        for (_, _, _, stage) in self.stages() {
            for what in ["disable", "enable"] {
                let [ours, bare] = ["withdraw", "bare"].map(|name| format!("{what} {stage} {name}"));
                let name = format!("peers.{what}_{}", stage.replace(' ', "_"));
                ratios.of(samples, &format!("{name}/bare"), &ours, &bare, Some(at_most));
                ratios.of(samples, &format!("{name}/copy"), &ours, &format!("copy {}", self.size), None);
            }
        }
        let most = pick(64, 8);
        for rival in ["withdraw", "bare"] {
            let at = |peers: usize| samples.p50(&format!("disable {} {peers}p 1m {rival}", self.name()));
            if let (Some(one), Some(many)) = (at(1), at(most)) {
                let each = nanos((many - one) / (most - 1) as f64);
                println!("disable {}, {rival}: {} with one peer, {each} for each more", self.name(), nanos(one));
            }
        }
    }
}

/// The memory of a region that nothing maps yet.
fn memory(ours: &Ours, size: &str, ratios: &mut Ratios) {
    ours.take();
    let disabled = memory_of("measured");
    ours.give_back();
    let enabled = memory_of("measured");
    println!("memory of {size}: {} enabled, {} disabled; {}", bytes(enabled), bytes(disabled), resident());
    let len = ours.region.len() as f64;
    ratios.add(&format!("peers.memory_{size}_enabled/size"), enabled as f64 / len, Some(2.0));
    ratios.add(&format!("peers.memory_{size}_disabled/size"), disabled as f64 / len, Some(2.0));
}

/// The memory of all files of this process whose names contain `name`, in bytes.
fn memory_of(name: &str) -> usize {
    let mut blocks = BTreeMap::new();
    for entry in std::fs::read_dir("/proc/self/fd").expect("/proc").flatten() {
        let is_meant = std::fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().contains(name));
        if let (true, Ok(file)) = (is_meant, std::fs::metadata(entry.path())) {
            blocks.insert(file.ino(), file.blocks());
        }
    }
    // Blocks of 512 bytes, whatever the file system (stat(2)).
    usize::try_from(blocks.values().sum::<u64>() * 512).expect("memory")
}

/// The lines of /proc/self/status on resident memory.
fn resident() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let lines = status.lines().filter(|line| line.starts_with("VmRSS") || line.starts_with("RssShmem"));
    lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>().join(", ")
}

/// A copy of `len` bytes from one file's mapping into another's.
struct Copy(Map, Map);

impl Copy {
    fn new(len: usize) -> Self {
        let map = || Map::new(memfd(len, 0).expect("memory").as_fd(), len, PAGE);
        let copy = Self(map(), map());
        copy.0.bytes().touch(PAGE);
        copy.1.bytes().touch(PAGE);
        copy
    }

    fn run(&self) {
        self.0.bytes().copy_to(self.1.bytes());
    }
}
