//! One client's connection: the log-in, then one round trip after the other.

use std::collections::HashMap;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::time::sleep;

use super::packet::{Agreed, Answer, Packet, Reader, prepared_id, send};
use super::script::{Act, Command, CommandKind, Point};
use super::{ServerConnection, Shared};

const COM_QUIT: u8 = 0x01;
const COM_QUERY: u8 = 0x03;
const COM_STMT_PREPARE: u8 = 0x16;
const COM_STMT_EXECUTE: u8 = 0x17;
const COM_STMT_SEND_LONG_DATA: u8 = 0x18;
const COM_STMT_CLOSE: u8 = 0x19;

/// Goes on, or the connection has ended.
type Flow<T = ()> = ControlFlow<(), T>;

/// How a connection ends.
const END: Flow<Packet> = ControlFlow::Break(());

pub(super) struct Connection {
    shared: Arc<Shared>,
    open: ServerConnection,
    number: u64,
    client: Side,
    server: Side,
    statements: HashMap<u32, String>,
}

struct Side {
    reader: Reader,
    writer: OwnedWriteHalf,
}

impl Side {
    fn new(stream: TcpStream) -> Self {
        let (reader, writer) = stream.into_split();
        Self { reader: Reader::new(reader), writer }
    }

    async fn send(&mut self, packet: &Packet) -> Flow {
        match send(&mut self.writer, packet).await {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    }

    async fn next(&mut self) -> Flow<Packet> {
        self.reader.next().await.map_or(END, ControlFlow::Continue)
    }

    /// The next packet, unless the `other` side leaves first.
    async fn next_unless_left(&mut self, other: &mut Self) -> Flow<Packet> {
        tokio::select! {
            packet = self.next() => packet,
            () = other.reader.closed() => END,
        }
    }

    /// An abortive close: a reset, whatever was under way.
    fn reset(&self) {
        // A connection that is gone already needs no reset.
        let _ = self.writer.as_ref().set_zero_linger();
    }
}

/// Serves a client until either side has ended.
pub(super) async fn serve(shared: Arc<Shared>, number: u64, client: TcpStream) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut client = Side::new(client);
    let rule = shared.meet(Command { connection: number, kind: CommandKind::Connect, text: String::new() });
    // Nothing is sent to the server before this one has passed.
    match &rule {
        Some((Point::Before, Act::Error { code, sqlstate, message })) => {
            let _ = client.send(&Packet::error(0, *code, sqlstate, message)).await;
            return Ok(());
        }
        Some((Point::Before, Act::Reset)) => {
            client.reset();
            return Ok(());
        }
        Some((Point::Before, Act::Hold | Act::Late)) => {
            client.reader.closed().await;
            return Ok(());
        }
        Some((Point::Before, Act::Delay(pause))) => {
            tokio::select! {
                () = sleep(*pause) => {}
                () = client.reader.closed() => return Ok(()),
            }
        }
        _ => {}
    }
    let server = TcpStream::connect(shared.server()).await?;
    server.set_nodelay(true)?;
    let open = shared.server_connection();
    let server = Side::new(server);
    let mut connection = Connection { shared, open, number, client, server, statements: HashMap::new() };
    connection.run(rule).await;
    connection.leave().await;
    Ok(())
}

impl Connection {
    async fn run(&mut self, rule: Option<(Point, Act)>) {
        self.open.set_broken(rule.is_some());
        let ControlFlow::Continue(agreed) = self.log_in(rule).await else { return };
        self.open.set_broken(false);
        while self.command(agreed).await.is_continue() {
            self.open.set_broken(false);
        }
    }

    /// Closes the server's side orderly and waits until the server has closed its own: what it was sent is done then, or
    /// was given up.
    async fn leave(self) {
        let Self { client, mut open, server: Side { mut reader, writer }, .. } = self;
        open.set_broken(true);
        drop(client);
        drop(writer);
        reader.closed().await;
    }

    async fn log_in(&mut self, rule: Option<(Point, Act)>) -> Flow<Agreed> {
        let greeting = self.server.next_unless_left(&mut self.client).await?;
        self.client.send(&greeting).await?;
        if greeting.is_error() {
            return ControlFlow::Break(());
        }
        let answer = self.client.next().await?;
        let agreed = Agreed::read(&answer);
        self.server.send(&answer).await?;
        if let Some((Point::Sent, act)) = &rule {
            self.act(act, 1).await?;
        }
        loop {
            let packet = self.server.next_unless_left(&mut self.client).await?;
            if let (true, Some((Point::Answered, act))) = (packet.is_ok() || packet.is_error(), &rule) {
                self.act(act, 1).await?;
            }
            self.client.send(&packet).await?;
            if packet.is_error() {
                return ControlFlow::Break(());
            }
            if packet.is_ok() {
                return ControlFlow::Continue(agreed);
            }
            // "Fast authentication went well" is followed by an OK; anything else asks the client for something.
            if packet.payload() != [0x01, 0x03] {
                let packet = self.client.next_unless_left(&mut self.server).await?;
                self.server.send(&packet).await?;
            }
        }
    }

    async fn command(&mut self, agreed: Agreed) -> Flow {
        let request = tokio::select! {
            packet = self.client.next() => packet?,
            // A server that ends a session says why, unasked.
            packet = self.server.next() => {
                self.client.send(&packet?).await?;
                return ControlFlow::Break(());
            }
        };
        let payload = request.payload();
        let code = payload.first().copied().unwrap_or(COM_QUIT);
        let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
        let statement = payload.get(1..5).map_or(0, |id| u32::from_le_bytes([id[0], id[1], id[2], id[3]]));
        let (kind, text, answer) = match code {
            COM_QUIT | COM_STMT_SEND_LONG_DATA => return self.server.send(&request).await,
            COM_STMT_CLOSE => {
                self.statements.remove(&statement);
                return self.server.send(&request).await;
            }
            COM_QUERY => (CommandKind::Query, text(payload.get(1..)), Answer::results(agreed)),
            COM_STMT_PREPARE => (CommandKind::Prepare, text(payload.get(1..)), Answer::prepared(agreed)),
            COM_STMT_EXECUTE => {
                let text = self.statements.get(&statement).cloned().unwrap_or_default();
                (CommandKind::Execute, text, Answer::results(agreed))
            }
            _ => (CommandKind::Other, String::new(), Answer::single(agreed)),
        };
        let rule = self.shared.meet(Command { connection: self.number, kind, text: text.clone() });
        self.open.set_broken(rule.is_some());
        let latency = self.shared.latency();
        if !latency.is_zero() {
            self.act(&Act::Delay(latency), 1).await?;
        }
        match &rule {
            Some((Point::Before, Act::Late)) => {
                self.client.reader.closed().await;
                // `leave` waits for what comes of it.
                self.server.send(&request).await?;
                return ControlFlow::Break(());
            }
            Some((Point::Before, Act::Error { code, sqlstate, message })) => {
                return self.client.send(&Packet::error(1, *code, sqlstate, message)).await;
            }
            Some((Point::Before, act)) => self.act(act, 1).await?,
            _ => {}
        }
        self.server.send(&request).await?;
        if let Some((Point::Sent, act)) = &rule {
            self.act(act, 1).await?;
        }
        let prepared = (kind == CommandKind::Prepare).then_some(text);
        let held = rule.filter(|(point, _)| *point == Point::Answered).map(|(_, act)| act);
        self.answer(answer, prepared, held).await
    }

    /// Passes an answer on; with `held`, only when all of it is there.
    async fn answer(&mut self, mut answer: Answer, prepared: Option<String>, held: Option<Act>) -> Flow {
        let mut packets = Vec::new();
        let mut prepared = prepared;
        loop {
            let packet = self.server.next_unless_left(&mut self.client).await?;
            if let Some(text) = prepared.take()
                && let Some(id) = prepared_id(&packet)
            {
                self.statements.insert(id, text);
            }
            let last = answer.is_last(&packet);
            if held.is_some() {
                packets.push(packet);
            } else {
                self.client.send(&packet).await?;
            }
            if last {
                break;
            }
        }
        match held {
            None => {}
            Some(Act::Error { code, sqlstate, message }) => {
                return self.client.send(&Packet::error(1, code, sqlstate, message)).await;
            }
            Some(act) => self.act(&act, 1).await?,
        }
        for packet in &packets {
            self.client.send(packet).await?;
        }
        ControlFlow::Continue(())
    }

    /// What is done the same at every point. Goes on only after a pause.
    async fn act(&mut self, act: &Act, sequence: u8) -> Flow {
        match act {
            Act::Reset => {
                self.client.reset();
                ControlFlow::Break(())
            }
            Act::Hold | Act::Late => {
                self.client.reader.closed().await;
                self.server.reader.closed().await;
                ControlFlow::Break(())
            }
            Act::Delay(pause) => {
                tokio::select! {
                    () = sleep(*pause) => ControlFlow::Continue(()),
                    () = self.client.reader.closed() => ControlFlow::Break(()),
                }
            }
            Act::Error { code, sqlstate, message } => {
                let _ = self.client.send(&Packet::error(sequence, *code, sqlstate, message)).await;
                ControlFlow::Break(())
            }
        }
    }
}
