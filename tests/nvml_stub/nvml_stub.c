/* A libnvidia-ml.so.1 without a GPU: what the real pynvml finds when a test puts this library in its path.

   It shows one card as the control file says at the moment of each call, so a test changes the card while the asker
   runs. Lines of the file (its path comes in NVML_STUB_CONTROL):
     card h200 | card spark     a discrete card with all readings, or GB10 as its driver answers (no memory, no fan)
     power_mw N                 draws N milliwatts; the energy counter is its integral since nvmlInit
     lost                       every call about the card is refused with GPU_IS_LOST
     pid N BYTES | pid N -      a compute process with its memory, or with memory that the driver does not say
     xid N                      an XID event; each such line is delivered once to every event set made before it
   The driver's version says STUB: these numbers measure nothing. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef int nvmlReturn_t;
enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7, TIMEOUT = 10, IS_LOST = 15 };

enum { MAX_PROCESSES = 32, MAX_XIDS = 32 };
#define EVENT_XID 0x8ULL
#define EVENT_DOUBLE_BIT 0x2ULL
#define NOT_AVAILABLE (~0ULL)

struct device { int is_card; };
struct memory { uint64_t total, free, used; };
struct utilisation { unsigned gpu, memory; };
struct process { unsigned pid; uint64_t used_memory; unsigned gpu_instance, compute_instance; };
struct event { struct device *device; uint64_t type, data; unsigned gpu_instance, compute_instance; };
struct event_set { int taken; };

struct card {
  int is_spark, is_lost;
  uint64_t power_mw;
  int processes, xids;
  struct process process[MAX_PROCESSES];
  uint64_t xid[MAX_XIDS];
};

static struct device the_card = {1};
static int initialised = 0;
static double energy_mj = 0, energy_at_s = 0;

static double now_s(void) {
  struct timespec now;
  clock_gettime(CLOCK_BOOTTIME, &now);
  return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static struct card read_card(void) {
  struct card card = {.power_mw = 412500};
  const char *path = getenv("NVML_STUB_CONTROL");
  FILE *file = path ? fopen(path, "r") : NULL;
  char line[128];
  while (file && fgets(line, sizeof line, file)) {
    unsigned pid;
    unsigned long long value;
    if (strncmp(line, "card spark", 10) == 0) {
      card.is_spark = 1;
    } else if (strncmp(line, "lost", 4) == 0) {
      card.is_lost = 1;
    } else if (sscanf(line, "power_mw %llu", &value) == 1) {
      card.power_mw = value;
    } else if (sscanf(line, "pid %u", &pid) == 1 && card.processes < MAX_PROCESSES) {
      int has_memory = sscanf(line, "pid %*u %llu", &value) == 1;
      struct process process = {pid, has_memory ? value : NOT_AVAILABLE, ~0U, ~0U};
      card.process[card.processes++] = process;
    } else if (sscanf(line, "xid %llu", &value) == 1 && card.xids < MAX_XIDS) {
      card.xid[card.xids++] = value;
    }
  }
  if (file) fclose(file);
  return card;
}

static nvmlReturn_t look(struct card *card) {
  if (!initialised) return UNINITIALIZED;
  *card = read_card();
  return card->is_lost ? IS_LOST : SUCCESS;
}

static nvmlReturn_t text(char *to, unsigned length, const char *from) {
  if (strlen(from) >= length) return INSUFFICIENT_SIZE;
  strcpy(to, from);
  return SUCCESS;
}

/* ---- the library and the system */

nvmlReturn_t nvmlInitWithFlags(unsigned flags) {
  (void)flags;
  initialised++;
  energy_at_s = now_s();
  return SUCCESS;
}

nvmlReturn_t nvmlShutdown(void) {
  if (!initialised) return UNINITIALIZED;
  initialised--;
  return SUCCESS;
}

const char *nvmlErrorString(nvmlReturn_t result) {
  switch (result) {
    case UNINITIALIZED: return "Uninitialized";
    case INVALID_ARGUMENT: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case INSUFFICIENT_SIZE: return "Insufficient Size";
    case TIMEOUT: return "Timeout";
    case IS_LOST: return "GPU is lost";
    default: return "Unknown Error";
  }
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned length) { return text(version, length, "580.00.STUB"); }

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *count) {
  *count = 1;
  return initialised ? SUCCESS : UNINITIALIZED;
}

/* ---- the card */

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, struct device **device) {
  struct card card;
  if (index != 0) return INVALID_ARGUMENT;
  *device = &the_card;
  return look(&card);
}

nvmlReturn_t nvmlDeviceGetUUID(struct device *device, char *uuid, unsigned length) {
  struct card card;
  nvmlReturn_t result = look(&card);
  (void)device;
  return result ? result : text(uuid, length, "GPU-57ab0000-0000-4000-8000-000000000000");
}

nvmlReturn_t nvmlDeviceGetName(struct device *device, char *name, unsigned length) {
  struct card card;
  nvmlReturn_t result = look(&card);
  (void)device;
  return result ? result : text(name, length, card.is_spark ? "NVIDIA GB10" : "NVIDIA H200");
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(struct device *device, struct memory *memory) {
  struct card card;
  nvmlReturn_t result = look(&card);
  (void)device;
  if (result) return result;
  if (card.is_spark) return NOT_SUPPORTED;
  memory->total = 150754820096ULL;
  memory->used = 640ULL << 20;
  for (int i = 0; i < card.processes; i++)
    if (card.process[i].used_memory != NOT_AVAILABLE) memory->used += card.process[i].used_memory;
  memory->free = memory->total - memory->used;
  return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetEnforcedPowerLimit(struct device *device, unsigned *limit_mw) {
  struct card card;
  nvmlReturn_t result = look(&card);
  (void)device;
  *limit_mw = 700000;
  return result ? result : card.is_spark ? NOT_SUPPORTED : SUCCESS;
}

nvmlReturn_t nvmlDeviceGetUtilizationRates(struct device *device, struct utilisation *rates) {
  struct card card;
  (void)device;
  rates->gpu = 96;
  rates->memory = 41;
  return look(&card);
}

nvmlReturn_t nvmlDeviceGetTemperature(struct device *device, int sensor, unsigned *celsius) {
  struct card card;
  (void)device, (void)sensor;
  *celsius = 61;
  return look(&card);
}

nvmlReturn_t nvmlDeviceGetPowerUsage(struct device *device, unsigned *power_mw) {
  struct card card;
  nvmlReturn_t result = look(&card);
  (void)device;
  *power_mw = (unsigned)card.power_mw;
  return result;
}

nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(struct device *device, unsigned long long *millijoules) {
  struct card card;
  nvmlReturn_t result = look(&card);
  double now = now_s();
  (void)device;
  energy_mj += (now - energy_at_s) * (double)card.power_mw;
  energy_at_s = now;
  *millijoules = (unsigned long long)energy_mj;
  return result;
}

nvmlReturn_t nvmlDeviceGetClockInfo(struct device *device, int domain, unsigned *mhz) {
  struct card card;
  (void)device;
  *mhz = domain == 1 ? 1980 : 3201;
  return look(&card);
}

nvmlReturn_t nvmlDeviceGetFanSpeed(struct device *device, unsigned *percent) {
  struct card card;
  nvmlReturn_t result = look(&card);
  (void)device;
  *percent = 0;
  return result ? result : NOT_SUPPORTED; /* neither card has a fan of its own */
}

nvmlReturn_t nvmlDeviceGetCurrentClocksThrottleReasons(struct device *device, unsigned long long *reasons) {
  struct card card;
  (void)device;
  *reasons = 0;
  return look(&card);
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(struct device *device, unsigned *count, struct process *found) {
  struct card card;
  nvmlReturn_t result = look(&card);
  unsigned room = *count;
  (void)device;
  if (result) return result;
  *count = (unsigned)card.processes;
  if (room < *count) return INSUFFICIENT_SIZE;
  if (found) memcpy(found, card.process, *count * sizeof *found);
  return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(struct device *device, unsigned *count, struct process *found) {
  struct card card;
  (void)device, (void)found;
  *count = 0;
  return look(&card);
}

/* ---- events */

nvmlReturn_t nvmlEventSetCreate(struct event_set **set) {
  struct card card = read_card();
  *set = malloc(sizeof **set);
  (*set)->taken = card.xids;
  return *set ? SUCCESS : INSUFFICIENT_SIZE;
}

nvmlReturn_t nvmlEventSetFree(struct event_set *set) {
  free(set);
  return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetSupportedEventTypes(struct device *device, unsigned long long *types) {
  struct card card;
  (void)device;
  *types = EVENT_XID | EVENT_DOUBLE_BIT;
  return look(&card);
}

nvmlReturn_t nvmlDeviceRegisterEvents(struct device *device, unsigned long long types, struct event_set *set) {
  struct card card;
  (void)device, (void)types, (void)set;
  return look(&card);
}

nvmlReturn_t nvmlEventSetWait_v2(struct event_set *set, struct event *event, unsigned timeout_ms) {
  struct card card;
  struct timespec wait = {timeout_ms / 1000, (long)(timeout_ms % 1000) * 1000000};
  nvmlReturn_t result = look(&card);
  if (result) return result;
  if (set->taken >= card.xids) {
    nanosleep(&wait, NULL);
    return TIMEOUT;
  }
  event->device = &the_card;
  event->type = EVENT_XID;
  event->data = card.xid[set->taken++];
  event->gpu_instance = event->compute_instance = ~0U;
  return SUCCESS;
}
