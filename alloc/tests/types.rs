//! Every public type: what of `Send`, `Sync`, `Unpin`, `UnwindSafe` and `RefUnwindSafe` it is, and in what it is
//! covariant. What must not compile is in `src/types.rs`.

mod support;

use std::collections::BTreeSet;
use std::marker::PhantomData;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::rc::Rc;

use support::exported;

/// Whether a type has a trait, as a constant: an inherent constant comes before that of a trait.
macro_rules! has {
    ($type:ty, $trait:ident) => {{
        #[allow(dead_code, reason = "it is used where the bound does not hold")]
        trait Not {
            const HAS: bool = false;
        }
        impl<T: ?Sized> Not for T {}
        #[allow(dead_code, reason = "it is there where the bound holds")]
        struct Of<T: ?Sized>(PhantomData<T>);
        #[allow(dead_code, reason = "it is used where the bound holds")]
        impl<T: ?Sized + $trait> Of<T> {
            const HAS: bool = true;
        }
        <Of<$type>>::HAS
    }};
}

/// The traits of a type, as they are.
macro_rules! traits {
    ($type:ty) => {
        [
            (has!($type, Send), "Send"),
            (has!($type, Sync), "Sync"),
            (has!($type, Unpin), "Unpin"),
            (has!($type, UnwindSafe), "UnwindSafe"),
            (has!($type, RefUnwindSafe), "RefUnwindSafe"),
        ]
        .into_iter()
        .filter_map(|(has, name)| has.then_some(name))
        .collect::<Vec<_>>()
        .join(" ")
    };
}

/// A type, the traits that it has, and those that it should have.
type Row = (&'static str, &'static str, String, &'static str);

/// Rows of types, with arguments in brackets, and the traits that they should have.
macro_rules! types {
    ($($name:ident $([$($argument:tt)*])?: $traits:expr;)*) => {
        [$((
            stringify!($name),
            stringify!($name $(<$($argument)*>)?),
            traits!($name $(<$($argument)*>)?),
            $traits,
        )),*]
    };
}

/// Everything.
const ALL: &str = "Send Sync Unpin UnwindSafe RefUnwindSafe";
/// Everything but that what a panic left behind in it is not looked at unawares.
const SHARED: &str = "Send Sync Unpin";
/// It belongs to the thread that made it, or holds what does.
const OF_A_THREAD: &str = "Unpin UnwindSafe RefUnwindSafe";
/// Each exported type has a row, which is right, and nothing else has.
fn compare(lib: &str, rows: &[Row], traits: &[&str]) {
    let named: BTreeSet<_> = rows.iter().map(|row| row.0).chain(traits.iter().copied()).collect();
    let exported = exported(lib);
    let without: Vec<_> = exported.difference(&named).collect();
    assert!(
        without.is_empty(),
        "exported, and without a row in `alloc/tests/types.rs`: {without:?}"
    );
    let left: Vec<_> = named.difference(&exported).collect();
    assert!(left.is_empty(), "with a row, and not exported: {left:?}");
    let wrong: Vec<_> = rows.iter().filter(|(_, _, are, should)| are != should).collect();
    assert!(wrong.is_empty(), "type, what it is, what it should be: {wrong:#?}");
}

#[test]
fn types_of_memcg() {
    use memcg::*;
    type Ready = std::future::Ready<u8>;
    type OfThread = std::future::Ready<Rc<u8>>;
    type Pinned = std::marker::PhantomPinned;
    let rows = types! {
        Cache[u8, String]: SHARED;
        CacheBox[u8]: ALL;
        CacheBox[Rc<u8>]: OF_A_THREAD;
        CacheStat: ALL;
        Cause: ALL;
        Changed['static]: SHARED;
        ClassStat: ALL;
        Count: ALL;
        Entered['static]: OF_A_THREAD;
        EnteredOwned: OF_A_THREAD;
        Error: ALL;
        EventKind: ALL;
        Events: ALL;
        Group: ALL;
        GroupBuilder: ALL;
        InGroup[Ready]: ALL;
        InGroup[OfThread]: OF_A_THREAD;
        InGroup[Pinned]: "Send Sync UnwindSafe RefUnwindSafe";
        Limit: ALL;
        Lru[u8]: SHARED;
        Lru[Rc<u8>]: "Unpin";
        LruNode[u8]: SHARED;
        LruNode[Rc<u8>]: "Unpin";
        LruStatus: ALL;
        Memcg: ALL;
        ObjectCache[u8]: ALL;
        ObjectCache[Rc<u8>]: ALL;
        ObjectCacheBuilder[u8]: SHARED;
        ObjectCacheStat: ALL;
        OnLimit: ALL;
        OverLimit: ALL;
        ParseLimitError: ALL;
        PeakReader: ALL;
        Pressure: ALL;
        ReclaimTask: SHARED;
        Refusal: ALL;
        Registration: ALL;
        Scan: ALL;
        SelfStat: ALL;
        ShrinkControl['static]: ALL;
        ShrinkerBuilder: ALL;
        Stall: ALL;
        Stat: ALL;
        Threshold: ALL;
        UntilOverLimit[Ready]: ALL;
        UntilOverLimit[OfThread]: OF_A_THREAD;
        UntilOverLimit[Pinned]: "Send Sync UnwindSafe RefUnwindSafe";
        Watch: SHARED;
    };
    compare(include_str!("../src/lib.rs"), &rows, &["FutureExt", "PlainDrop", "Shrinker"]);
}

#[test]
fn types_of_memcg_shrink() {
    use memcg_shrink::*;
    let rows = types! {
        Added: ALL;
        Caller: ALL;
        Cause: ALL;
        Control: ALL;
        Deadline: ALL;
        Engine: SHARED;
        EngineStat: ALL;
        Errand: ALL;
        ErrandEnd: ALL;
        Isolated: "Send Unpin";
        Links: "Send Sync";
        ListLru: ALL;
        Lists: SHARED;
        LruStatus: ALL;
        Panic: ALL;
        Place: ALL;
        Pressure: ALL;
        RawCount: ALL;
        RawScan: ALL;
        RawShrinker: OF_A_THREAD;
        Refusal: ALL;
        Report: ALL;
        ShrinkerId: ALL;
        ShrinkerName: ALL;
        Stall: SHARED;
        Stalled: ALL;
        Tried: ALL;
        Wait: ALL;
        Walked: ALL;
    };
    compare(include_str!("../../shrink/src/lib.rs"), &rows, &["Host"]);
}

#[test]
fn types_of_memcg_accounting() {
    use memcg_accounting::*;
    let rows = types! {
        Barrier: ALL;
        BarrierKind: ALL;
        Bell: ALL;
        Charged: ALL;
        Child: ALL;
        CreateError: ALL;
        Cut: ALL;
        Dying: ALL;
        Entry: ALL;
        EventKind: ALL;
        EventSet: ALL;
        Events: ALL;
        Gate: ALL;
        GroupRef: ALL;
        Hands: ALL;
        Limit: ALL;
        Name: ALL;
        NameError: ALL;
        NoWatch: ALL;
        NotHandedOver: ALL;
        OnLimit: ALL;
        OverLimit: ALL;
        ParseLimitError: ALL;
        Payer: ALL;
        Protection: ALL;
        Reason: ALL;
        Request: ALL;
        Root: ALL;
        Seen: ALL;
        Settings: ALL;
        Source: ALL;
        Stock: ALL;
        Tag: ALL;
        Tree: "Send Sync Unpin UnwindSafe";
        Turn: ALL;
        Turns: ALL;
        UnchargeLog: ALL;
        Want: ALL;
        Window: ALL;
    };
    compare(include_str!("../../accounting/src/lib.rs"), &rows, &[]);
}

/// What is read alone, or owned, may be taken for one of a shorter-lived.
#[test]
fn what_only_gives_is_covariant() {
    fn node<'a>(node: memcg::LruNode<&'static str>) -> memcg::LruNode<&'a str> {
        node
    }
    fn entered<'a>(entered: memcg::Entered<'static>) -> memcg::Entered<'a> {
        entered
    }
    fn changed<'a>(changed: memcg::Changed<'static>) -> memcg::Changed<'a> {
        changed
    }
    fn control<'a>(control: memcg::ShrinkControl<'static>) -> memcg::ShrinkControl<'a> {
        control
    }
    fn future<'a>(future: memcg::InGroup<&'static str>) -> memcg::InGroup<&'a str> {
        future
    }
    // That they compile is the test.
    let _ = (node, entered, changed, control, future);
}
