//! `revoke probe`: what is there; and what is not, what that costs and how to get it.

use crate::Verdict;
use crate::output::{self, Failed};
use revocable_mmio::{Feature, Support};
use serde_json::json;
use std::io::{self, Write};

pub(crate) fn run(as_json: bool) -> Result<Verdict, Failed> {
    let support = Support::probe();
    let best = crate::device::build("probe", 4 << 20, crate::device::Way::Best)?.strategy();
    let lacks = lacks(&support);
    let mut out = io::stdout().lock();
    if as_json {
        let features: serde_json::Map<_, _> =
            Feature::all().iter_names().map(|(name, f)| (name.to_lowercase(), support.has(f).into())).collect();
        let name = |f: Feature| f.iter_names().map(|(name, _)| name.to_lowercase()).collect::<Vec<_>>();
        let lacks = lacks
            .iter()
            .map(|lack| json!({ "features": name(lack.features), "costs": lack.costs, "get_it_by": lack.remedies }));
        let document = json!({
            "kernel": kernel(),
            "features": features,
            "userfaultfd": support.userfaultfd(),
            "sees_kernel_faults": support.sees_kernel_faults(),
            "best_strategy": best.to_string(),
            "lacks": lacks.collect::<Vec<_>>(),
        });
        output::json(&mut out, &document)?;
    } else {
        writeln!(out, "{}\n", kernel())?;
        write!(out, "{support}")?;
        writeln!(out, "\nA region on memory of its own is revoked by: {best}")?;
        if lacks.is_empty() {
            writeln!(out, "Nothing is missing that would change anything.")?;
        }
        for Lack { what, costs, remedies, .. } in &lacks {
            writeln!(out, "\nWithout {what}:")?;
            wrapped(&mut out, costs)?;
            for (i, remedy) in remedies.iter().enumerate() {
                writeln!(out, "  {:<9}{remedy}", if i == 0 { "Remedy:" } else { "or:" })?;
            }
        }
    }
    Ok(Verdict::Good)
}

/// Indented lines of at most 79 columns.
fn wrapped(out: &mut impl Write, text: &str) -> io::Result<()> {
    let mut line = " ".to_owned();
    for word in text.split_whitespace() {
        if line.len() + 1 + word.len() > 79 {
            writeln!(out, "{line}")?;
            line = " ".to_owned();
        }
        line.extend([" ", word]);
    }
    writeln!(out, "{line}")
}

/// Features that are not there, and whose lack has a price.
struct Lack {
    /// All of these together: one alone may be no loss.
    features: Feature,
    what: &'static str,
    costs: &'static str,
    remedies: &'static [&'static str],
}

const NO_SECCOMP: &str = "in a container: let userfaultfd(2) through its seccomp profile";
const DEVICE: &str = "Linux 6.1: setfacl -m u:USER:rw /dev/userfaultfd";
const CONTAINER: &str = "in a container: its own device file, --device=/dev/userfaultfd";

/// What there may be to say, in the order of its weight.
const PRICES: [Lack; 10] = [
    Lack {
        features: Feature::UFFD_DEVICE.union(Feature::UFFD_SYSCALL).union(Feature::UFFD_USER_MODE),
        what: "any userfaultfd",
        costs: "nothing can wait at a raw pointer: no OnDisabled::Block, no strategy zap, no monitor; in a reset raw \
                pointers get SIGBUS. The crate's accessors wait all the same.",
        remedies: &["Linux 5.11 or later", NO_SECCOMP, DEVICE, CONTAINER],
    },
    Lack {
        features: Feature::UFFD_DEVICE.union(Feature::UFFD_SYSCALL),
        what: "a userfaultfd that sees the kernel's faults",
        costs: "where a load would wait (a reset, a page that zap has to map), system calls and vCPUs get EFAULT.",
        remedies: &[DEVICE, CONTAINER, "CAP_SYS_PTRACE", "sysctl vm.unprivileged_userfaultfd=1", NO_SECCOMP],
    },
    Lack {
        features: Feature::UFFD_USER_MODE,
        what: "a userfaultfd for user-mode faults",
        costs: "no mapping with OnDisabled::Block, unless Monitor::from_device is given /dev/userfaultfd.",
        remedies: &["Linux 5.11 or later", NO_SECCOMP],
    },
    Lack {
        features: Feature::DONTUNMAP,
        what: "MREMAP_DONTUNMAP on shared memory",
        costs: "no strategy detach: disable() and enable() take longer the more pages are mapped, and each page faults \
                again after enable().",
        remedies: &["Linux 5.13 or later"],
    },
    Lack {
        features: Feature::MINOR_SHMEM,
        what: "minor faults on shared memory",
        costs: "no strategy zap; detach and replace need none.",
        remedies: &["Linux 5.14 or later, on x86-64 or aarch64", NO_SECCOMP],
    },
    Lack {
        features: Feature::MINOR_HUGETLB,
        what: "minor faults on hugetlb",
        costs: "no strategy zap on huge pages; replace revokes them.",
        remedies: &["Linux 5.13 or later, on x86-64 or aarch64", NO_SECCOMP],
    },
    Lack {
        features: Feature::UFFD_SIGBUS,
        what: "faults that the faulting thread resolves",
        costs: "no accessors_only mappings under zap.",
        remedies: &["Linux 4.14 or later", NO_SECCOMP],
    },
    Lack {
        features: Feature::UFFD_EVENT_REMAP,
        what: "registrations that survive mremap",
        costs: "accesses by raw pointer cannot wait in a reset, nor under OnDisabled::Block.",
        remedies: &["Linux 4.11 or later", NO_SECCOMP],
    },
    Lack {
        features: Feature::MEMBARRIER,
        what: "membarrier(2)",
        costs: "every guard executes a fence: some nanoseconds more for each.",
        remedies: &["let membarrier(2) through the seccomp profile, before the first region"],
    },
    Lack {
        features: Feature::HUGETLB_2M,
        what: "free huge pages of 2 MiB",
        costs: "Backing::Huge2M cannot be built. Regions of base pages need none.",
        remedies: &["sysctl vm.nr_hugepages=N (N times 2 MiB, taken from the system's memory)"],
    },
];

/// What is missing. A lack that is part of a greater one is told with that one.
fn lacks(support: &Support) -> Vec<&'static Lack> {
    let mut told = Feature::empty();
    let mut lacks = Vec::new();
    for lack in &PRICES {
        let there = support.features().intersects(lack.features);
        if !there && !told.contains(lack.features) {
            told |= lack.features;
            lacks.push(lack);
        }
    }
    lacks
}

/// System, release and machine, from uname(2).
pub(crate) fn kernel() -> String {
    nix::sys::utsname::uname().map_or_else(
        |_| "unknown kernel".to_owned(),
        |u| [u.sysname(), u.release(), u.machine()].map(|part| part.to_string_lossy().into_owned()).join(" "),
    )
}
