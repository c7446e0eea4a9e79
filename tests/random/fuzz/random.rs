//! Random sequences: mostly sensible ones, with every kind of nonsense among them.

use super::op::{
    Advice, Build, Call, Faulter, GROUPS, How, Limit, Loss, Lost, MAPPINGS, MOST_PAGES, Memory, Modify, Op, PINS,
    Pages, Place, REGIONS, Rights, Rough, Verb, Via, View, Waiter,
};
use super::touch::{Change, Hand};
use proptest::prelude::*;
use proptest::strategy::Union;
use revocable_mmio::fault::FaultFlags;
use revocable_mmio::{OnDisabled, Strategy as Way};

/// The longest copy.
const COPY: usize = 9000;

fn one_of<T: Clone + std::fmt::Debug + 'static>(values: &[T]) -> Union<Just<T>> {
    Union::new(values.iter().cloned().map(Just))
}

/// One of so many slots, low ones more often, because objects are made there first.
fn slot(count: usize) -> impl Strategy<Value = usize> {
    (0..count, 0..count).prop_map(|(one, other)| one.min(other))
}

/// Mostly near the edge of a page, aligned to 8 more often than not.
fn place() -> impl Strategy<Value = Place> {
    let page = || slot(4);
    prop_oneof![
        20 => (page(), 0isize..8).prop_map(|(page, word)| Place::Near { page, byte: 8 * word }),
        10 => (page(), 1isize..8).prop_map(|(page, word)| Place::Near { page: page + 1, byte: -8 * word }),
        4 => (page(), 0isize..40).prop_map(|(page, byte)| Place::Near { page, byte }),
        1 => (0usize..5, -40isize..40).prop_map(|(page, byte)| Place::Near { page, byte }),
        1 => (0usize..40_000).prop_map(Place::Far),
        1 => (0usize..40).prop_map(|less| Place::Far(usize::MAX - less)),
    ]
}

/// Where mappings and pins begin: pages, for the most part.
fn edge() -> impl Strategy<Value = Place> {
    prop_oneof![
        20 => slot(5).prop_map(|page| Place::Near { page, byte: 0 }),
        1 => place(),
    ]
}

/// How far they go.
fn length() -> impl Strategy<Value = Place> {
    prop_oneof![
        20 => (1usize..4).prop_map(|page| Place::Near { page, byte: 0 }),
        1 => place(),
    ]
}

fn flags() -> impl Strategy<Value = FaultFlags> {
    let sensible = [FaultFlags::NOWAIT, FaultFlags::WAIT, FaultFlags::DEFAULT, FaultFlags::empty()];
    prop_oneof![
        8 => one_of(&sensible),
        3 => any::<u32>().prop_map(|bits| FaultFlags::from_bits_truncate(bits) | FaultFlags::ALLOW_RETRY),
        1 => any::<u32>().prop_map(FaultFlags::from_bits_truncate),
        1 => any::<u32>().prop_map(FaultFlags::from_bits_retain),
    ]
}

fn policy() -> impl Strategy<Value = OnDisabled> {
    one_of(&[OnDisabled::Sigbus, OnDisabled::AllOnes, OnDisabled::Block, OnDisabled::Block])
}

fn how() -> impl Strategy<Value = How> {
    one_of(&[How::Wait, How::Wait, How::Try, How::Timeout])
}

fn build(memories: &'static [Memory]) -> impl Strategy<Value = Build> {
    let around = prop_oneof![3 => Just(None), 1 => (0usize..4).prop_map(Some)];
    let ways = one_of(&[Way::Zap, Way::Detach, Way::Replace]);
    let pages = prop_oneof![80 => 1usize..5, 2 => Just(0), 1 => Just(MOST_PAGES)];
    let rarely = || prop::bool::weighted(0.2);
    let way = (ways, prop::bool::weighted(0.9));
    (way, one_of(memories), pages, rarely(), rarely(), around, rarely()).prop_map(
        |((way, sensible), memory, pages, disabled, own_monitor, around, trim)| {
            // Devices allow one strategy only, and huge pages two.
            let strategy = match (memory, way) {
                (Memory::Device, _) | (Memory::Huge, Way::Detach) if sensible => Way::Replace,
                _ => way,
            };
            // Huge pages are scarce.
            let pages = if memory == Memory::Huge { pages.min(2) } else { pages };
            Build { strategy, memory, pages, disabled, own_monitor, around, trim }
        },
    )
}

fn view() -> impl Strategy<Value = View> {
    let len = prop_oneof![2 => Just(None), 1 => length().prop_map(Some)];
    (prop_oneof![2 => Just(Place::Near { page: 0, byte: 0 }), 1 => edge()], len, any::<u8>(), policy(), any::<u8>())
        .prop_map(|(offset, len, read_only, policy, accessors)| View {
            offset,
            len,
            read_only: read_only < 40,
            policy,
            accessors_only: accessors < 40,
        })
}

fn via() -> impl Strategy<Value = Via> {
    prop_oneof![
        3 => Just(Via::Accessor),
        1 => Just(Via::Try),
        1 => Just(Via::Register),
        3 => Just(Via::Raw),
        1 => flags().prop_map(Via::With),
    ]
}

fn access() -> impl Strategy<Value = Op> {
    let mapping = || slot(MAPPINGS);
    let width = one_of(&[1usize, 2, 4, 8, 8]);
    let modify = prop_oneof![
        one_of(&[Modify::Swap, Modify::Add, Modify::Or, Modify::And, Modify::Xor, Modify::Exchange(0)]),
        any::<u64>().prop_map(Modify::Exchange),
    ];
    let len = prop_oneof![4 => 0usize..40, 1 => 0..COPY];
    let call = prop_oneof![Just(Call::Vm), Just(Call::Write), any::<u8>().prop_map(Call::Read)];
    prop_oneof![
        6 => (mapping(), via(), width.clone(), place())
            .prop_map(|(mapping, via, width, at)| Op::Load { mapping, via, width, at }),
        6 => (mapping(), via(), width.clone(), place(), any::<u64>())
            .prop_map(|(mapping, via, width, at, value)| Op::Store { mapping, via, width, at, value }),
        3 => (mapping(), modify, width, place(), any::<u64>())
            .prop_map(|(mapping, modify, width, at, value)| Op::Modify { mapping, modify, width, at, value }),
        2 => (mapping(), place(), len.clone()).prop_map(|(mapping, at, len)| Op::CopyOut { mapping, at, len }),
        2 => (mapping(), place(), len.clone(), any::<u8>())
            .prop_map(|(mapping, at, len, byte)| Op::CopyIn { mapping, at, len, byte }),
        1 => (mapping(), place(), len.clone(), any::<u8>())
            .prop_map(|(mapping, at, len, byte)| Op::Fill { mapping, at, len, byte }),
        3 => (mapping(), call, place(), len)
            .prop_map(|(mapping, call, at, len)| Op::Call { mapping, call, at, len }),
        1 => mapping().prop_map(|mapping| Op::Shed { mapping }),
    ]
}

fn rights() -> impl Strategy<Value = Rights> {
    one_of(&[Rights::Loads, Rights::Nothing, Rights::All])
}

fn pages() -> impl Strategy<Value = Pages> {
    prop_oneof![
        20 => (slot(5), (1usize..5).prop_map(|count| count.max(2) - 1)),
        1 => (slot(5), 0usize..8),
        1 => Just((0, MOST_PAGES)),
    ]
    .prop_map(|(first, count)| Pages { first, count })
}

/// A change that an application makes to its mappings.
fn rough(gently: bool) -> impl Strategy<Value = Op> {
    let mapping = || slot(MAPPINGS);
    let advice = one_of(&[
        Advice::DontNeed,
        Advice::WillNeed,
        Advice::DontDump,
        Advice::Random,
        Advice::Cold,
        Advice::PageOut,
        Advice::Collapse,
        Advice::Populate,
    ]);
    let rudely = u32::from(!gently) * 3;
    let what = prop_oneof![
        3 => one_of(&[Rough::Lock, Rough::Lock, Rough::Unlock]),
        1 => Just(Rough::Bind),
        4 => advice.prop_map(Rough::Advise),
        3 => rights().prop_map(Rough::Protect),
        rudely => one_of(&[Rough::Hole, Rough::Fill]),
    ];
    prop_oneof![
        1 => (mapping(), pages(), rights())
            .prop_map(|(mapping, pages, rights)| Op::Protect { mapping, pages, rights }),
        3 => (mapping(), pages(), what).prop_map(|(mapping, pages, what)| Op::Rough { mapping, pages, what }),
    ]
}

/// An operation that changes the process.
fn rude() -> impl Strategy<Value = Op> {
    let lost = one_of(&[Lost::Userfaultfds, Lost::Empty, Lost::Ones, Lost::Files]);
    let loss = one_of(&[Loss::Close, Loss::Null, Loss::Directory, Loss::Memory]);
    let limit = prop_oneof![
        6 => (0u8..8).prop_map(Limit::Descriptors),
        6 => prop_oneof![0u16..20, 500u16..560].prop_map(Limit::Space),
        1 => (0u8..8).prop_map(Limit::Mappings),
    ];
    prop_oneof![
        2 => (lost, loss).prop_map(|(what, how)| Op::Lose { what, how }),
        1 => Just(Op::Fork),
        1 => limit.prop_map(Op::Limit),
        2 => Just(Op::Unlimit),
    ]
}

fn change() -> impl Strategy<Value = Op> {
    let region = || slot(REGIONS);
    prop_oneof![
        4 => (region(), how()).prop_map(|(region, how)| Op::Disable { region, how }),
        4 => (region(), how()).prop_map(|(region, how)| Op::Enable { region, how }),
        2 => (region(), how(), place(), any::<u8>()).prop_map(|(region, how, at, byte)| Op::Reset { region, how, at, byte }),
        1 => (0..GROUPS, 0usize..1 << REGIONS).prop_map(|(group, members)| Op::Group { group, members }),
        3 => (0..GROUPS, one_of(&[Verb::Disable, Verb::Enable, Verb::Reset]))
            .prop_map(|(group, verb)| Op::All { group, verb }),
    ]
}

fn other(memories: &'static [Memory]) -> impl Strategy<Value = Op> {
    let (region, mapping) = (|| slot(REGIONS), || slot(MAPPINGS));
    let who = || {
        (flags(), policy(), prop::bool::weighted(0.2)).prop_map(|(flags, policy, cancelled)| Faulter {
            flags,
            policy,
            cancelled,
        })
    };
    let waiter = prop_oneof![one_of(&[Waiter::Load, Waiter::Raw]), any::<u64>().prop_map(Waiter::Store),];
    prop_oneof![
        1 => (0..REGIONS, build(memories)).prop_map(|(region, build)| Op::Region { region, build }),
        1 => region().prop_map(|region| Op::DropRegion { region }),
        4 => (mapping(), region(), view())
            .prop_map(|(mapping, region, how)| Op::Map { mapping, region, how }),
        1 => mapping().prop_map(|mapping| Op::Unmap { mapping }),
        2 => (region(), place(), 0usize..40).prop_map(|(region, at, len)| Op::OwnerRead { region, at, len }),
        2 => (region(), place(), 0usize..40, any::<u8>())
            .prop_map(|(region, at, len, byte)| Op::OwnerFill { region, at, len, byte }),
        3 => (0..PINS, region(), edge(), length(), flags(), any::<bool>())
            .prop_map(|(pin, region, from, to, flags, polite)| Op::Pin { pin, region, from, to, flags, polite }),
        2 => (0..PINS).prop_map(|pin| Op::Unpin { pin }),
        2 => mapping().prop_map(|mapping| Op::Guard { mapping }),
        3 => Just(Op::Unguard),
        2 => (region(), place(), who()).prop_map(|(region, at, who)| Op::FaultRegion { region, at, who }),
        2 => (mapping(), place(), who()).prop_map(|(mapping, at, who)| Op::FaultMapping { mapping, at, who }),
        4 => (mapping(), waiter, place()).prop_map(|(mapping, what, at)| Op::Wait { mapping, what, at }),
    ]
}

/// An operation. With `gently`, only operations that leave the process as it is.
pub(crate) fn op(memories: &'static [Memory], gently: bool) -> impl Strategy<Value = Op> {
    let rudely = u32::from(!gently);
    prop_oneof![12 => access(), 7 => change(), 8 => other(memories), 3 => rough(gently), rudely => rude()]
}

/// A whole sequence: some regions and mappings first, then anything.
pub(crate) fn history(memories: &'static [Memory], most: usize, gently: bool) -> impl Strategy<Value = Vec<Op>> {
    let begin = (build(memories), build(memories), prop::collection::vec(view(), MAPPINGS - 1)).prop_map(
        |(first, second, views)| {
            let mut history: Vec<Op> =
                [first, second].into_iter().enumerate().map(|(region, build)| Op::Region { region, build }).collect();
            let map = |(mapping, how)| Op::Map { mapping, region: mapping % 2, how };
            history.extend(views.into_iter().enumerate().map(map));
            history
        },
    );
    (begin, prop::collection::vec(op(memories, gently), 1..most)).prop_map(|(mut history, more)| {
        history.extend(more);
        history
    })
}

/// One change of a region to which a second thread makes accesses.
pub(crate) fn touched_change() -> impl Strategy<Value = Change> {
    prop_oneof![
        3 => how().prop_map(Change::Disable),
        3 => how().prop_map(Change::Enable),
        2 => how().prop_map(Change::Reset),
        2 => one_of(&[Verb::Disable, Verb::Enable, Verb::Reset]).prop_map(Change::Group),
        1 => Just(Change::Remap),
        1 => Just(Change::Sleep),
    ]
}

pub(crate) fn hand() -> impl Strategy<Value = Hand> {
    one_of(&[Hand::Accessor, Hand::Raw, Hand::Bulk, Hand::Atomic, Hand::Call])
}

pub(crate) fn way() -> impl Strategy<Value = Way> {
    one_of(&[Way::Zap, Way::Detach, Way::Replace])
}

pub(crate) fn any_policy() -> impl Strategy<Value = OnDisabled> {
    policy()
}
