import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.nio.ByteBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Map;
import java.util.Optional;
import org.apache.kafka.server.log.remote.storage.LogSegmentData;
import org.apache.kafka.server.log.remote.storage.RemoteLogSegmentMetadata;
import org.apache.kafka.server.log.remote.storage.RemoteLogSegmentMetadata.CustomMetadata;
import org.apache.kafka.server.log.remote.storage.RemoteResourceNotFoundException;
import org.apache.kafka.server.log.remote.storage.RemoteStorageException;
import org.apache.kafka.server.log.remote.storage.RemoteStorageManager;

/**
 * A remote tier in a folder: each segment is a folder of its files, by its id. While the folder has a file named {@code
 * away}, the tier answers nothing.
 */
public final class FolderStorage implements RemoteStorageManager {
    private Path folder;

    @Override
    public void configure(Map<String, ?> configs) {
        folder = Path.of((String) configs.get("dir"));
    }

    @Override
    public Optional<CustomMetadata> copyLogSegmentData(RemoteLogSegmentMetadata segment, LogSegmentData data)
            throws RemoteStorageException {
        try {
            Path target = Files.createDirectories(place(segment));
            ByteBuffer epochs = data.leaderEpochIndex().duplicate();
            byte[] epochBytes = new byte[epochs.remaining()];
            epochs.get(epochBytes);
            Files.write(target.resolve(IndexType.LEADER_EPOCH.name()), epochBytes);
            Files.write(target.resolve(IndexType.OFFSET.name()), Files.readAllBytes(data.offsetIndex()));
            Files.write(target.resolve(IndexType.TIMESTAMP.name()), Files.readAllBytes(data.timeIndex()));
            Files.write(
                    target.resolve(IndexType.PRODUCER_SNAPSHOT.name()),
                    Files.readAllBytes(data.producerSnapshotIndex()));
            if (data.transactionIndex().isPresent()) {
                Files.write(
                        target.resolve(IndexType.TRANSACTION.name()),
                        Files.readAllBytes(data.transactionIndex().get()));
            }
            Files.write(target.resolve("log"), Files.readAllBytes(data.logSegment()));
            return Optional.empty();
        } catch (IOException error) {
            throw new RemoteStorageException(error);
        }
    }

    @Override
    public InputStream fetchLogSegment(RemoteLogSegmentMetadata segment, int start) throws RemoteStorageException {
        return fetchLogSegment(segment, start, Integer.MAX_VALUE - 1);
    }

    @Override
    public InputStream fetchLogSegment(RemoteLogSegmentMetadata segment, int start, int end)
            throws RemoteStorageException {
        byte[] bytes = read(segment, "log");
        int last = Math.min(bytes.length, end + 1);
        return new ByteArrayInputStream(Arrays.copyOfRange(bytes, Math.min(start, last), last));
    }

    @Override
    public InputStream fetchIndex(RemoteLogSegmentMetadata segment, IndexType type) throws RemoteStorageException {
        return new ByteArrayInputStream(read(segment, type.name()));
    }

    @Override
    public void deleteLogSegmentData(RemoteLogSegmentMetadata segment) throws RemoteStorageException {
        try (var files = Files.list(place(segment))) {
            for (Path file : files.toList()) {
                Files.delete(file);
            }
            Files.delete(place(segment));
        } catch (IOException error) {
            throw new RemoteStorageException(error);
        }
    }

    @Override
    public void close() {}

    private Path place(RemoteLogSegmentMetadata segment) throws RemoteStorageException {
        if (Files.exists(folder.resolve("away"))) {
            throw new RemoteStorageException("the remote tier is away");
        }
        return folder.resolve(segment.remoteLogSegmentId().id().toString());
    }

    private byte[] read(RemoteLogSegmentMetadata segment, String name) throws RemoteStorageException {
        Path file = place(segment).resolve(name);
        if (!Files.exists(file)) {
            throw new RemoteResourceNotFoundException("no " + name + " of " + segment.remoteLogSegmentId());
        }
        try {
            return Files.readAllBytes(file);
        } catch (IOException error) {
            throw new RemoteStorageException(error);
        }
    }
}
