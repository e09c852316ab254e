//! The metadata store on MySQL, TiDB and MariaDB.
//!
//! Each room implements the store trait of its name in `metadata_api::store`; the others are what they stand on.
//!
//! | room | what it is |
//! |---|---|
//! | `options`, `connect`, `dialect`, `pool` | where the server is, what it is, the session set-up, few lazy connections |
//! | `migrate`, `privileges` | the schema of the top-level `migrations/`; what the user may do to it |
//! | `retry`, `tx` | what an error means; named transactions that run again |
//! | `fence`, `group` | the fence row; calls that share a transaction under it |
//! | `feeds`, `events`, `create`, `rows`, `sql` | changefeeds read and written in batches; decoding; lists |
//! | `query`, `election`, `capture`, `channel`, `controller`, `processor`, `owner`, `admin` | the traits |
//!
//! How to add another store: write the same rooms, and run the `metadata-conformance` suite on it.
//!
//! What is relied upon, of every server alike: row locks hold until COMMIT, an UPDATE under READ COMMITTED sees the newest
//! committed row, a plain read in a transaction sees what was committed before it. Under the fence's lock a plain read is
//! enough for what only changes under the fence: schedules, processors, whether a changefeed may run, a capture's
//! state. What is written is versioned all the same, and the count of rows is checked.

mod admin;
mod capture;
mod channel;
mod connect;
mod controller;
mod create;
mod dialect;
mod election;
mod events;
mod feeds;
mod fence;
mod group;
mod migrate;
mod options;
mod owner;
mod pool;
mod privileges;
mod processor;
mod query;
mod retry;
mod rows;
mod sql;
mod tx;

use std::fmt;
use std::sync::Arc;

use metadata_api::Result;
use metadata_api::store::faults::Faults;

pub use dialect::{Dialect, Server};
pub use migrate::migrate;
pub use options::MysqlOptions;
pub use privileges::PRIVILEGES;

use connect::Connector;
use dialect::Purpose;
use group::Group;
use pool::Pool;
use retry::into_opening_error;
use tx::{Runner, bounded};

/// The store. Cheap to clone; the clones share its pool.
#[derive(Clone)]
pub struct MysqlStore {
    runner: Runner,
    groups: Arc<Groups>,
}

/// The calls that are committed together, by kind.
struct Groups {
    create: Group<create::Create>,
    pause: Group<events::Event>,
    resume: Group<events::Event>,
    remove: Group<events::Event>,
    transition: Group<events::Event>,
    report: Group<owner::Report>,
    release: Group<owner::Releases>,
    owner_set: Group<controller::Targets>,
    processor_set: Group<processor::ProcessorTargets>,
}

impl Default for Groups {
    fn default() -> Self {
        Self {
            create: Group::new("admin.create"),
            pause: Group::new("admin.pause"),
            resume: Group::new("admin.resume"),
            remove: Group::new("admin.remove"),
            transition: Group::new("owner.transition"),
            report: Group::new("owner.report"),
            release: Group::new("owner.release"),
            owner_set: Group::new("controller.owner_set"),
            processor_set: Group::new("controller.processor_set"),
        }
    }
}

impl MysqlStore {
    /// Connects, and checks that the server is one the store is safe on, that the schema is this binary's, and that the
    /// user may do all that the store does ([`PRIVILEGES`]).
    ///
    /// # Errors
    /// [`Unsupported`](metadata_api::MetadataError::Unsupported), [`Schema`](metadata_api::MetadataError::Schema),
    /// [`Unavailable`](metadata_api::MetadataError::Unavailable).
    pub async fn open(options: MysqlOptions) -> Result<Self> {
        Self::open_with(options, None).await
    }

    /// The same with failures on order, for tests.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_with_faults(options: MysqlOptions, faults: Arc<dyn Faults>) -> Result<Self> {
        Self::open_with(options, Some(faults)).await
    }

    async fn open_with(options: MysqlOptions, faults: Option<Arc<dyn Faults>>) -> Result<Self> {
        let connector = Connector::new(options);
        let checked = async {
            let mut session = connector.connect(Purpose::Channel).await?;
            let (limit, database) = (connector.options().read_timeout, connector.options().database());
            bounded("checking the schema", limit, async {
                migrate::check(&mut session.raw, database).await?;
                privileges::check(&mut session.raw, database).await
            })
            .await
        };
        checked.await.map_err(|error| into_opening_error("open", error))?;
        Ok(Self { runner: Runner::new(Pool::new(connector), faults), groups: Arc::default() })
    }

    /// What the store is connected to.
    pub fn server(&self) -> Option<&Server> {
        self.runner.pool().connector().known_server()
    }
}

impl fmt::Debug for MysqlStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MysqlStore")
            .field("connector", self.runner.pool().connector())
            .finish_non_exhaustive()
    }
}
