//! Asks the server, on a connection of its own, where its log ends: how an idle source knows what time it is.

use std::time::Duration;

use capture_runtime::task::TaskError;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::endpoint::Endpoint;
use super::server::{self, End};

/// How often.
const PERIOD: Duration = Duration::from_millis(500);

/// Failing for so long is an error: without answers there are no marks while nothing happens.
const PATIENCE: Duration = Duration::from_secs(10);

/// The task that asks. It ends with this value.
pub(super) struct Idle {
    ends: mpsc::Receiver<Result<End, TaskError>>,
    endpoint: Endpoint,
    _task: AbortOnDropHandle<()>,
}

impl Idle {
    /// Begins to ask. `server_uuid` is who must answer.
    pub(super) fn begin(endpoint: Endpoint, server_uuid: String) -> Self {
        let (sender, ends) = mpsc::channel(1);
        let task = tokio::spawn(ask(endpoint.clone(), server_uuid, sender));
        Self { ends, endpoint, _task: AbortOnDropHandle::new(task) }
    }

    /// Waits for the next answer; an error when another server answers, or none for a while.
    pub(super) async fn next(&mut self) -> Result<End, TaskError> {
        match self.ends.recv().await {
            Some(answer) => answer,
            None => Err(self.endpoint.lost("the task that asks where the binlog ends has ended")),
        }
    }
}

async fn ask(endpoint: Endpoint, server_uuid: String, sender: mpsc::Sender<Result<End, TaskError>>) {
    let mut conn = None;
    let mut failing: Option<Instant> = None;
    loop {
        // Room first: an answer that waits for it would be old.
        let Ok(room) = sender.reserve().await else { return };
        let answer = async {
            let mut open = match conn.take() {
                Some(open) => open,
                None => endpoint.connect().await?,
            };
            let uuid = server::uuid(&endpoint, &mut open).await?;
            if uuid != server_uuid {
                return Ok(Err(endpoint.lost(format_args!(
                    "another server answers than a moment ago: server_uuid {uuid} in place of {server_uuid}"
                ))));
            }
            let end = server::end(&endpoint, &mut open).await?;
            conn = Some(open);
            Ok::<_, TaskError>(Ok(end))
        };
        match answer.await {
            Ok(answer) => {
                failing = None;
                room.send(answer);
            }
            Err(error) if failing.is_some_and(|since| since.elapsed() >= PATIENCE) => room.send(Err(error)),
            // The dump's own connection may tell sooner that the server is gone.
            Err(error) => {
                failing.get_or_insert_with(Instant::now);
                drop(room);
                tracing::debug!(%error, "cannot ask where the binlog ends");
            }
        }
        tokio::time::sleep(PERIOD).await;
    }
}
