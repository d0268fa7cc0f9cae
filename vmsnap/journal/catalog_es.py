# SPDX-License-Identifier: Apache-2.0
"""The texts of the journal's message catalogue in Spanish; catalog.py makes entries of them.

Names that are typed or looked up stay as they are: commands, options, keys, phases, levels, names
of errors. A test holds them to the English ones.
"""

from __future__ import annotations

from vmsnap.errors import Kind
from vmsnap.journal.sender import Event

READ_OUTPUT = (
    "Lea la salida del propio script en el journal (`journalctl -t vmsnap-script`) y corríjalo"
)
PUT_SCRIPT = "Ponga el script en la ruta que indica la configuración, o corrija la ruta"
PROTECT_SCRIPT = (
    "Haga lo que dice el mensaje. Un script pertenece a root, tiene el modo 0700, está en "
    "directorios que solo root puede cambiar y nombra un intérprete que existe"
)
RAISE_TIMEOUT = "Averigüe a qué espera el script, o aumente timeoutInSeconds"
RESUMED = "compruebe que la aplicación ha reanudado su actividad"

KINDS = {
    Kind.FREEZE_FAILED: (
        "No se pudo congelar un sistema de archivos: se ha dejado fuera, o se han vuelto a "
        "descongelar todos",
        "Vea el motivo en el mensaje. Device or resource busy significa que otro programa ha "
        "congelado el sistema de archivos: averigüe cuál y deje que lo descongele él mismo. "
        "Lo que está dañado, o cuyo disco falla, se deja fuera: vea `dmesg`. `vmsnap plan` muestra "
        "qué se congelaría; [freeze] exclude= deja fuera un sistema de archivos",
    ),
    Kind.FREEZE_TIMEOUT: (
        "Un sistema de archivos no se congeló a tiempo; se han vuelto a descongelar los demás",
        "Busque un dispositivo que no responda o que escriba despacio bajo el punto de montaje que "
        "nombra el mensaje, y qué es lo que escribe tanto en él; aumente [freeze] timeout= si el "
        "dispositivo es simplemente lento",
    ),
    Kind.MOUNT_OPEN_FAILED: (
        "No se pudo abrir un punto de montaje, o ahora hay otra cosa montada en él",
        "Ejecute `vmsnap plan` para ver los sistemas de archivos; desmonte lo que esté montado "
        "encima del punto de montaje, o exclúyalo con [freeze] exclude=",
    ),
    Kind.THAW_FAILED: (
        "No se pudo descongelar un sistema de archivos",
        "Ejecute `vmsnap thaw --force` ahora mismo: quien escribe en ese sistema de archivos está "
        "bloqueado. Si vuelve a fallar, busque los errores del dispositivo en `dmesg`",
    ),
    Kind.HOLD_EXPIRED: (
        "La instantánea superó el plazo máximo (hold); entretanto se descongelaron los sistemas de "
        "archivos",
        "Haga que la instantánea sea más rápida, o aumente --hold o [freeze] hold=; durante todo "
        "ese tiempo no se puede escribir en los sistemas de archivos",
    ),
    Kind.THAWED_EARLY: (
        "Otro programa descongeló un sistema de archivos mientras se tomaba la instantánea",
        "Busque el otro programa que congela y descongela (otro agente de copias de seguridad, "
        "fsfreeze) y asegúrese de que no se ejecute al mismo tiempo",
    ),
    Kind.NOT_FROZEN: (
        "Un sistema de archivos se montó, o pasó a admitir escrituras, después de hacerse el plan; "
        "no estaba congelado",
        "Averigüe qué lo montó o lo volvió a montar mientras se tomaba la instantánea (montadores "
        "automáticos, programas de copias de seguridad, contenedores que arrancan) y asegúrese de "
        "que no lo haga en ese momento",
    ),
    Kind.BECAME_READ_ONLY: (
        "Un sistema de archivos montado para escribir en él ha pasado a ser de solo lectura",
        "Lo ha forzado el kernel, véase `dmesg`: el sistema de archivos o su disco ha fallado, o "
        "se eliminó un proceso mientras descongelaba un btrfs. Puede haberse perdido lo que se iba "
        "a escribir. Detenga lo que escribe en él, desmóntelo, compruébelo y vuelva a montarlo, o "
        "exclúyalo con [freeze] exclude=",
    ),
    Kind.GUARD_LOST: (
        "El proceso que vigila la congelación murió o dejó de responder; vmsnap descongeló en su "
        "lugar",
        "Averigüe quién lo detuvo (el registro del kernel nombra a las víctimas de la falta de "
        "memoria) y vuelva a tomar la instantánea",
    ),
    Kind.ENGINE_LOST: (
        "El proceso que dirigía la sesión fue eliminado; otro proceso descongeló los sistemas de "
        "archivos en su lugar",
        "Averigüe quién lo eliminó (el registro del kernel nombra a las víctimas de la falta de "
        "memoria; `systemctl status`, a un watchdog) y vuelva a tomar la instantánea: no puede "
        "fiarse de la que estaba en curso",
    ),
    Kind.SNAPSHOT_FAILED: (
        "No se tomó la instantánea: falló su comando o se interrumpió la sesión",
        "Vea el motivo en el mensaje. Si fue el comando, lea su salida y ejecútelo a mano, fuera "
        "de vmsnap; si fue una interrupción, tome la instantánea de nuevo",
    ),
    Kind.SESSION_IN_PROGRESS: (
        "Hay otra sesión en curso en esta máquina",
        "Espere a que termine; `vmsnap status` la muestra",
    ),
    Kind.NO_SESSION: (
        "No hay ninguna sesión en espera que descongelar",
        "Inicie una con `vmsnap freeze`; `vmsnap status` muestra cómo terminó la última",
    ),
    Kind.INCORRECT_SETTINGS: (
        "Los ajustes del propio vmsnap no se pueden usar, así que no comienza ninguna sesión",
        "Corrija el archivo y la clave indicados; `vmsnap check` dice si ya es correcto",
    ),
    Kind.PROVISIONING_FAILED: (
        "El documento que debía configurar vmsnap no se pudo poner en práctica",
        "Corríjalo donde indica el mensaje y ejecute con él `vmsnap provision --file FILE`. Si "
        "la configuración ya se corrigió a mano, elimine /var/lib/vmsnap/provision.json",
    ),
    Kind.INCORRECT_INTEGRATION: (
        "El agente de esta plataforma no llama a vmsnap como debería, así que sus instantáneas "
        "pueden ser menos coherentes de lo que parece",
        "Haga lo que dice el mensaje o ejecute de nuevo `vmsnap integrate`; `vmsnap integrate "
        "--remove` termina la conexión",
    ),
    Kind.PRE_SCRIPT_EXECUTION_FAILED: (
        "El pre-script falló, también en todos los reintentos configurados",
        READ_OUTPUT,
    ),
    Kind.POST_SCRIPT_EXECUTION_FAILED: (
        "El post-script falló, también en todos los reintentos configurados",
        f"{READ_OUTPUT}; {RESUMED}",
    ),
    Kind.PRE_SCRIPT_NOT_FOUND: (
        "No hay ningún pre-script donde lo indica la configuración",
        PUT_SCRIPT,
    ),
    Kind.POST_SCRIPT_NOT_FOUND: (
        "No hay ningún post-script donde lo indica la configuración",
        PUT_SCRIPT,
    ),
    Kind.INCORRECT_PLUGINHOST_FILE: (
        "El archivo del plugin host no se puede usar",
        "Restaure el archivo, con propietario root y modo 0644 o más estricto; o elimínelo, ya que "
        "es opcional",
    ),
    Kind.INCORRECT_JSON_CONFIG_FILE: (
        "El archivo de configuración de una aplicación no se puede usar",
        "Corrija la clave indicada, o aparte la aplicación y sus scripts y escríbalos de nuevo con "
        "`vmsnap init`; propietario root, modo 0600",
    ),
    Kind.INSUFFICIENT_PERMISSION_FOR_PRE_SCRIPT: (
        "Otros usuarios además de root podrían haber modificado el pre-script, o no puede "
        "iniciarse",
        PROTECT_SCRIPT,
    ),
    Kind.INSUFFICIENT_PERMISSION_FOR_POST_SCRIPT: (
        "Otros usuarios además de root podrían haber modificado el post-script, o no puede "
        "iniciarse",
        PROTECT_SCRIPT,
    ),
    Kind.PRE_SCRIPT_TIMEOUT: (
        "El pre-script no terminó en el tiempo previsto y fue detenido",
        RAISE_TIMEOUT,
    ),
    Kind.POST_SCRIPT_TIMEOUT: (
        "El post-script no terminó en el tiempo previsto y fue detenido",
        f"{RAISE_TIMEOUT}; {RESUMED}",
    ),
}

ERROR = """{summary} (error {label}, código {code}).

Qué hacer: {action}."""
IN_SESSION = """

Ocurrió en la fase @VMSNAP_PHASE@ de la sesión @VMSNAP_SESSION@. La instantánea puede alcanzar como
máximo este nivel de consistencia, visto todo lo que ha fallado hasta ahora: @VMSNAP_CONSISTENCY@.
La sesión completa: `journalctl VMSNAP_SESSION=@VMSNAP_SESSION@`"""
OF_SCRIPT = """

Lo que escribió el script está entre los registros de su aplicación:
`journalctl VMSNAP_SESSION=@VMSNAP_SESSION@ VMSNAP_APP=@VMSNAP_APP@`"""

EVENTS = {
    Event.STARTED: (
        "Ha comenzado una sesión",
        """Ha comenzado la sesión @VMSNAP_SESSION@. Comprueba la configuración, pone en reposo las
aplicaciones, congela los sistemas de archivos, deja que se tome la instantánea y después lo deshace
todo en orden inverso.

No hay nada que hacer. `vmsnap status` muestra por dónde va. Todos sus registros:
`journalctl VMSNAP_SESSION=@VMSNAP_SESSION@`""",
    ),
    Event.PHASE: (
        "Ha comenzado una fase de una sesión",
        """La sesión @VMSNAP_SESSION@ ha llegado a la fase @VMSNAP_PHASE@. Las fases son `check`
(configuración), `pre` (los pre-scripts de las aplicaciones), `presync` (escribir en disco las
páginas modificadas), `freeze`, `snapshot`, `thaw`, `post` (los post-scripts) y `report`.

No hay nada que hacer.""",
    ),
    Event.SCRIPT_ENDED: (
        "Ha terminado un script",
        """El @VMSNAP_PHASE@-script de la aplicación @VMSNAP_APP@ ha terminado, y el mensaje dice
cómo. Si falló, sigue el registro de un error, que dice qué hacer.

Lo que escribió el script está entre los registros de su aplicación:
`journalctl VMSNAP_SESSION=@VMSNAP_SESSION@ VMSNAP_APP=@VMSNAP_APP@`""",
    ),
    Event.SCRIPT_OUTPUT: (
        "Una línea de la salida de un script",
        """El @VMSNAP_PHASE@-script de la aplicación @VMSNAP_APP@ escribió esto en la sesión
@VMSNAP_SESSION@. Lo que significa depende del script; vmsnap solo lo transmite. Un script fija la
prioridad de una línea si la comienza con `<3>` (error) hasta `<6>` (información); véase
sd-daemon(3).""",
    ),
    Event.FROZEN: (
        "Todos los sistemas de archivos están congelados",
        """La sesión @VMSNAP_SESSION@ ha congelado tantos sistemas de archivos como dice el mensaje,
y ya se puede tomar la instantánea. Quien escribe en uno de ellos espera hasta que se descongele, a
más tardar tras el tiempo que fijan --hold o [freeze] hold=.

No hay nada que hacer. El journal no recibió este registro hasta después de descongelar, pues él
mismo puede estar congelado; el momento de la congelación está en
`vmsnap plot @VMSNAP_SESSION@`.""",
    ),
    Event.THAWED: (
        "Los sistemas de archivos están descongelados",
        """La sesión @VMSNAP_SESSION@ ha descongelado tantos sistemas de archivos como dice el
mensaje, y quien esperaba para escribir en ellos continúa.

No hay nada que hacer, salvo que también conste el error ThawFailed: en ese caso ejecute
`vmsnap thaw --force`.""",
    ),
    Event.ENDED: (
        "Ha terminado una sesión",
        """La sesión @VMSNAP_SESSION@ ha terminado con esta consistencia: @VMSNAP_CONSISTENCY@. Los
niveles son `application` (aplicaciones en reposo, sistemas de archivos congelados), `filesystem`
(sistemas de archivos congelados), `crash` (como tras un corte de corriente) y `none` (no hay una
instantánea de la que fiarse). El mensaje dice si la sesión tuvo éxito, es decir, si hay una
instantánea del nivel exigido.

Si falló, sus errores dicen qué hacer: `journalctl -p err VMSNAP_SESSION=@VMSNAP_SESSION@`

El campo VMSNAP_RESULT de este registro contiene el resultado completo en JSON. `vmsnap history`
muestra las sesiones pasadas, y `vmsnap plot @VMSNAP_SESSION@` dibuja esta.""",
    ),
    Event.PROVISIONED: (
        "La configuración se escribió a partir de un documento",
        """`vmsnap provision` ha puesto en práctica un documento, como hace cloud-init al crear una
máquina. El mensaje dice cuántos archivos escribió y cuántos estaban ya.

No hay nada que hacer. `vmsnap check` dice si la configuración está en orden.""",
    ),
    Event.NOTE: (
        "Algo que vmsnap ha advertido",
        """El mensaje dice qué. No es un error en sí, pero puede explicar alguno: una clave que
vmsnap no conoce, un punto de montaje que excluir donde no hay nada montado, un resultado que no se
pudo escribir, lo que se descongeló después de que una sesión fuera eliminada.

Corrija lo que nombra el mensaje. Un traceback de Python es un fallo del propio vmsnap: notifíquelo,
junto con los demás registros de la sesión.""",
    ),
    Event.DROPPED: (
        "Se perdieron registros",
        """Se perdieron tantos registros como dice el mensaje, porque el journal no los aceptó.
vmsnap no espera al journal, que a su vez puede estar esperando a que se descongele un sistema de
archivos.

La instantánea no se ve afectada. Si se perdió el registro del final de una sesión, `vmsnap history`
no conoce esa sesión; `vmsnap status` conoce la última en todo caso. Si se repite, averigüe qué es
lo que escribe tanto en el journal, o lo que lo frena: `systemctl status systemd-journald`""",
    ),
}
