//! What the compiler must refuse of the public types, as tests of the documentation: lifetimes and
//! variance. Which of the types are `Send`, `Sync` and so on is in `tests/types.rs`.
//!
//! # A list of one type is not one of a shorter-lived
//!
//! ```compile_fail
//! fn add_short<'a>(lru: &memcg::Lru<&'a str>, short: &'a str) {
//!     lru.add(&memcg::LruNode::new(short));
//! }
//! let lru = memcg::Lru::<&'static str>::new();
//! let text = String::from("gone before the list is");
//! add_short(&lru, &text);
//! drop(text);
//! lru.walk(&memcg::Group::root(), 1, |_| memcg::LruStatus::Removed);
//! ```
//!
//! The same with a text that lives as long compiles:
//!
//! ```no_run
//! fn add_short<'a>(lru: &memcg::Lru<&'a str>, short: &'a str) {
//!     lru.add(&memcg::LruNode::new(short));
//! }
//! let lru = memcg::Lru::<&'static str>::new();
//! add_short(&lru, "there for good");
//! lru.walk(&memcg::Group::root(), 1, |_| memcg::LruStatus::Removed);
//! ```
//!
//! Nor is it the other way round:
//!
//! ```compile_fail
//! fn longer<'a>(lru: memcg::Lru<&'a str>) -> memcg::Lru<&'static str> {
//!     lru
//! }
//! ```
//!
//! What a list holds outlives it, for its drop drops that:
//!
//! ```compile_fail
//! let lru = memcg::Lru::new();
//! let text = String::from("gone before the list is");
//! lru.add(&memcg::LruNode::new(text.as_str()));
//! ```
//!
//! # A cache is invariant
//!
//! Keys and values are `'static`, and may be functions of any lifetime, which are subtypes of
//! functions of one.
//!
//! ```compile_fail
//! type Any = for<'a> fn(&'a str) -> &'a str;
//! type One = fn(&'static str) -> &'static str;
//! fn value(cache: &memcg::Cache<u8, Any>) -> &memcg::Cache<u8, One> {
//!     cache
//! }
//! ```
//!
//! ```compile_fail
//! type Any = for<'a> fn(&'a str) -> &'a str;
//! type One = fn(&'static str) -> &'static str;
//! fn key(cache: &memcg::Cache<Any, u8>) -> &memcg::Cache<One, u8> {
//!     cache
//! }
//! ```
//!
//! So are a cache of objects, which has them back, and its objects:
//!
//! ```compile_fail
//! type Any = for<'a> fn(&'a str) -> &'a str;
//! type One = fn(&'static str) -> &'static str;
//! fn objects(cache: memcg::ObjectCache<Any>) -> memcg::ObjectCache<One> {
//!     cache
//! }
//! ```
//!
//! ```compile_fail
//! type Any = for<'a> fn(&'a str) -> &'a str;
//! type One = fn(&'static str) -> &'static str;
//! fn object(object: memcg::CacheBox<Any>) -> memcg::CacheBox<One> {
//!     object
//! }
//! ```
//!
//! What is idle is taken by another thread, so it is `Send`:
//!
//! ```compile_fail
//! let cache = memcg::ObjectCache::<std::rc::Rc<u8>>::builder("shared").keep_idle(1).build();
//! ```
//!
//! # What is borrowed does not outlive what it is borrowed from
//!
//! ```compile_fail
//! let entered = {
//!     let group = memcg::Group::root();
//!     group.enter()
//! };
//! ```
//!
//! ```compile_fail
//! fn forever(watch: memcg::Watch) -> memcg::Changed<'static> {
//!     watch.changed()
//! }
//! ```
//!
//! ```compile_fail
//! fn keep(control: &memcg::ShrinkControl<'_>) -> &'static memcg::Group {
//!     control.group()
//! }
//! ```
//!
//! # Only what may be shared by threads goes into what is
//!
//! ```compile_fail
//! let lru = memcg::Lru::<std::cell::Cell<u8>>::new();
//! ```
//!
//! ```compile_fail
//! let cache = memcg::Cache::<u8, std::rc::Rc<u8>>::new("shared");
//! ```
//!
//! Only what drops without code of the program is evicted inside allocations:
//!
//! ```compile_fail
//! #[derive(Clone)]
//! struct Value;
//! let cache = memcg::Cache::<u8, Value>::direct("direct");
//! ```
