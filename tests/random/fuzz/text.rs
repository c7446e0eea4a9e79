//! Sequences as text: one operation a line, of words and numbers between blanks. `#` begins a comment. The text that a
//! failing run prints can be put into `corpus/` as it is.

mod read;

pub(crate) use read::parse;

use super::op::{
    Advice, Build, Call, Faulter, How, Limit, Loss, Lost, Memory, Modify, Op, Pages, Place, Rights, Rough, Verb, Via,
    Waiter,
};
use revocable_mmio::{OnDisabled, Strategy};

/// More than any size that is built or copied here. A larger number in a file is a mistake.
const MOST: usize = 1 << 16;

const STRATEGIES: [(&str, Strategy); 4] = [
    ("zap", Strategy::Zap),
    ("detach", Strategy::Detach),
    ("replace", Strategy::Replace),
    ("withdraw", Strategy::Withdraw),
];
const MEMORIES: [(&str, Memory); 4] =
    [("memfd", Memory::Memfd), ("huge", Memory::Huge), ("shm", Memory::ShmFile), ("device", Memory::Device)];
const POLICIES: [(&str, OnDisabled); 3] =
    [("sigbus", OnDisabled::Sigbus), ("ones", OnDisabled::AllOnes), ("block", OnDisabled::Block)];
const HOWS: [(&str, How); 3] = [("wait", How::Wait), ("try", How::Try), ("timeout", How::Timeout)];
const VERBS: [(&str, Verb); 3] = [("disable", Verb::Disable), ("enable", Verb::Enable), ("reset", Verb::Reset)];
const RIGHTS: [(&str, Rights); 3] = [("nothing", Rights::Nothing), ("loads", Rights::Loads), ("all", Rights::All)];
const ROUGHS: [(&str, Rough); 16] = [
    ("mlock", Rough::Lock),
    ("munlock", Rough::Unlock),
    ("mbind", Rough::Bind),
    ("dont-need", Rough::Advise(Advice::DontNeed)),
    ("will-need", Rough::Advise(Advice::WillNeed)),
    ("dont-dump", Rough::Advise(Advice::DontDump)),
    ("random", Rough::Advise(Advice::Random)),
    ("cold", Rough::Advise(Advice::Cold)),
    ("page-out", Rough::Advise(Advice::PageOut)),
    ("collapse", Rough::Advise(Advice::Collapse)),
    ("populate", Rough::Advise(Advice::Populate)),
    ("mprotect:nothing", Rough::Protect(Rights::Nothing)),
    ("mprotect:loads", Rough::Protect(Rights::Loads)),
    ("mprotect:all", Rough::Protect(Rights::All)),
    ("hole", Rough::Hole),
    ("fill-holes", Rough::Fill),
];
const LOST: [(&str, Lost); 4] =
    [("userfaultfds", Lost::Userfaultfds), ("empty", Lost::Empty), ("ones", Lost::Ones), ("files", Lost::Files)];
const LOSSES: [(&str, Loss); 4] =
    [("close", Loss::Close), ("null", Loss::Null), ("directory", Loss::Directory), ("memory", Loss::Memory)];
const VIAS: [(&str, Via); 4] =
    [("accessor", Via::Accessor), ("try", Via::Try), ("register", Via::Register), ("raw", Via::Raw)];

fn name<T: PartialEq>(names: &[(&'static str, T)], value: &T) -> &'static str {
    names.iter().find(|(_, known)| known == value).map_or("?", |(name, _)| name)
}

/// A sequence, a line for each operation.
pub(crate) fn print(history: &[Op]) -> String {
    history.iter().map(|op| line(op) + "\n").collect()
}

fn place(place: Place) -> String {
    match place {
        Place::Near { page, byte } => format!("{page}:{byte}"),
        Place::Far(offset) => format!("{offset:#x}"),
    }
}

/// The first page, and the count if it is not one.
fn pages(pages: Pages) -> String {
    if pages.count == 1 { pages.first.to_string() } else { format!("{}x{}", pages.first, pages.count) }
}

fn via(via: Via) -> String {
    match via {
        Via::With(flags) => format!("with:{:#x}", flags.bits()),
        other => name(&VIAS, &other).to_owned(),
    }
}

fn who(who: Faulter) -> String {
    let cancelled = if who.cancelled { " cancelled" } else { "" };
    format!("{:#x} {}{cancelled}", who.flags.bits(), name(&POLICIES, &who.policy))
}

pub(crate) fn line(op: &Op) -> String {
    match op {
        Op::Region { region, build } => {
            let Build { strategy, memory, pages, disabled, own_monitor, around, trim } = build;
            let mut line =
                format!("region {region} {} {} {pages}", name(&STRATEGIES, strategy), name(&MEMORIES, memory));
            for (set, word) in [(disabled, " disabled"), (own_monitor, " own-monitor"), (trim, " trim")] {
                line += if *set { word } else { "" };
            }
            line + &around.map_or(String::new(), |pages| format!(" around:{pages}"))
        }
        Op::DropRegion { region } => format!("drop {region}"),
        Op::Map { mapping, region, how } => {
            let len = how.len.map_or("rest".to_owned(), place);
            let mut line =
                format!("map {mapping} {region} {} {len} {}", place(how.offset), name(&POLICIES, &how.policy));
            for (set, word) in [(how.read_only, " read-only"), (how.accessors_only, " accessors-only")] {
                line += if set { word } else { "" };
            }
            line
        }
        Op::Unmap { mapping } => format!("unmap {mapping}"),
        Op::Disable { region, how } => format!("disable {region} {}", name(&HOWS, how)),
        Op::Enable { region, how } => format!("enable {region} {}", name(&HOWS, how)),
        Op::Reset { region, how, at, byte } => {
            format!("reset {region} {} {} {byte:#x}", name(&HOWS, how), place(*at))
        }
        Op::Load { mapping, via: by, width, at } => format!("load {mapping} {} {width} {}", via(*by), place(*at)),
        Op::Store { mapping, via: by, width, at, value } => {
            format!("store {mapping} {} {width} {} {value:#x}", via(*by), place(*at))
        }
        Op::Modify { mapping, modify, width, at, value } => {
            let modify = match modify {
                Modify::Swap => "swap".to_owned(),
                Modify::Add => "add".to_owned(),
                Modify::Or => "or".to_owned(),
                Modify::And => "and".to_owned(),
                Modify::Xor => "xor".to_owned(),
                Modify::Exchange(current) => format!("exchange:{current:#x}"),
            };
            format!("modify {mapping} {modify} {width} {} {value:#x}", place(*at))
        }
        Op::CopyOut { mapping, at, len } => format!("copy-out {mapping} {} {len}", place(*at)),
        Op::CopyIn { mapping, at, len, byte } => format!("copy-in {mapping} {} {len} {byte:#x}", place(*at)),
        Op::Fill { mapping, at, len, byte } => format!("fill {mapping} {} {len} {byte:#x}", place(*at)),
        Op::Call { mapping, call, at, len } => {
            let call = match call {
                Call::Vm => "vm".to_owned(),
                Call::Write => "write".to_owned(),
                Call::Read(byte) => format!("read:{byte:#x}"),
            };
            format!("call {mapping} {call} {} {len}", place(*at))
        }
        Op::Shed { mapping } => format!("shed {mapping}"),
        Op::Protect { mapping, pages: of, rights } => {
            format!("protect {mapping} {} {}", pages(*of), name(&RIGHTS, rights))
        }
        Op::Rough { mapping, pages: of, what } => format!("rough {mapping} {} {}", pages(*of), name(&ROUGHS, what)),
        Op::Lose { what, how } => format!("lose {} {}", name(&LOST, what), name(&LOSSES, how)),
        Op::Fork => "fork".to_owned(),
        Op::Limit(Limit::Descriptors(left)) => format!("limit descriptors {left}"),
        Op::Limit(Limit::Space(left)) => format!("limit space {left}"),
        Op::Limit(Limit::Mappings(left)) => format!("limit mappings {left}"),
        Op::Unlimit => "unlimit".to_owned(),
        Op::OwnerRead { region, at, len } => format!("owner-read {region} {} {len}", place(*at)),
        Op::OwnerFill { region, at, len, byte } => format!("owner-fill {region} {} {len} {byte:#x}", place(*at)),
        Op::Pin { pin, region, from, to, flags, polite } => {
            let polite = if *polite { " polite" } else { "" };
            format!("pin {pin} {region} {} {} {:#x}{polite}", place(*from), place(*to), flags.bits())
        }
        Op::Unpin { pin } => format!("unpin {pin}"),
        Op::Guard { mapping } => format!("guard {mapping}"),
        Op::Unguard => "unguard".to_owned(),
        Op::Group { group, members } => format!("group {group} {members:#x}"),
        Op::All { group, verb } => format!("all {group} {}", name(&VERBS, verb)),
        Op::FaultRegion { region, at, who: by } => format!("fault-region {region} {} {}", place(*at), who(*by)),
        Op::FaultMapping { mapping, at, who: by } => format!("fault-mapping {mapping} {} {}", place(*at), who(*by)),
        Op::Wait { mapping, what, at } => {
            let what = match what {
                Waiter::Load => "load".to_owned(),
                Waiter::Store(value) => format!("store:{value:#x}"),
                Waiter::Raw => "raw".to_owned(),
            };
            format!("wait {mapping} {what} {}", place(*at))
        }
    }
}
