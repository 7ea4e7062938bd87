import java.time.Duration;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.kafka.clients.producer.internals.BuiltInPartitioner;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.JoinWindows;
import org.apache.kafka.streams.kstream.StreamJoined;
import org.apache.kafka.streams.state.Stores;

/**
 * Joins two topics by key within a window of event time, as a Kafka Streams application does, and prints how many pairs
 * it found. With the first argument {@code partitions} it prints where Java's default partitioner puts keys instead.
 *
 * <p>Arguments: bootstrap servers, application id, left topic, right topic, window in milliseconds, pairs to wait for,
 * seconds to wait at most.
 */
public final class Join {
    public static void main(String[] args) throws Exception {
        if (args[0].equals("partitions")) {
            int count = Integer.parseInt(args[1]);
            for (int i = 2; i < args.length; i++) {
                System.out.println(BuiltInPartitioner.partitionForKey(args[i].getBytes("UTF-8"), count));
            }
            return;
        }
        Duration window = Duration.ofMillis(Long.parseLong(args[4]));
        int wanted = Integer.parseInt(args[5]);
        AtomicInteger pairs = new AtomicInteger();
        CountDownLatch done = new CountDownLatch(wanted);
        StreamsBuilder builder = new StreamsBuilder();
        Consumed<byte[], byte[]> bytes = Consumed.with(Serdes.ByteArray(), Serdes.ByteArray());
        Duration retained = Duration.ofDays(1).plus(window.multipliedBy(2));
        builder.stream(args[2], bytes)
            .join(
                builder.stream(args[3], bytes),
                (left, right) -> left,
                JoinWindows.ofTimeDifferenceAndGrace(window, Duration.ofDays(1)),
                StreamJoined.with(Serdes.ByteArray(), Serdes.ByteArray(), Serdes.ByteArray())
                    // In memory, so that no native library of RocksDB is needed.
                    .withThisStoreSupplier(Stores.inMemoryWindowStore("left", retained, window.multipliedBy(2), true))
                    .withOtherStoreSupplier(Stores.inMemoryWindowStore("right", retained, window.multipliedBy(2), true))
                    .withLoggingDisabled())
            .foreach((key, value) -> {
                pairs.incrementAndGet();
                done.countDown();
            });
        Properties properties = new Properties();
        properties.putAll(Map.of(
            StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, args[0],
            StreamsConfig.APPLICATION_ID_CONFIG, args[1],
            StreamsConfig.STATE_DIR_CONFIG, System.getProperty("java.io.tmpdir") + "/" + args[1],
            StreamsConfig.consumerPrefix("auto.offset.reset"), "earliest",
            StreamsConfig.consumerPrefix("isolation.level"), "read_committed"));
        try (KafkaStreams streams = new KafkaStreams(builder.build(), properties)) {
            streams.start();
            if (done.await(Long.parseLong(args[6]), TimeUnit.SECONDS)) {
                Thread.sleep(2_000); // a pair too many would come now
            }
            System.out.println("pairs " + pairs.get());
        }
        System.exit(0);
    }
}
